"""Environment, command line, files on disk, constants, device, experiment folders, Ray."""
