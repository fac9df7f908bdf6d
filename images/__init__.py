"""Container images for stateful handlers: planned here, built by a later part."""
