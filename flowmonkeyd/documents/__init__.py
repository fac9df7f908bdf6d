"""What users write: flow documents, selectors, versions, handler manifests. Pure, without I/O."""
