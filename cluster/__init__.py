"""Images, manifests and helpers for Ray clusters. Imports none of the other packages."""
