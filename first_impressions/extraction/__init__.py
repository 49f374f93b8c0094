"""From clips to face chips: packets, frames, faces, tracking, people."""
