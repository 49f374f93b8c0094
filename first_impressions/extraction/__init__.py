"""From clips to face chips: packets, frames, HDR, detectors, faces, tracking, people."""
