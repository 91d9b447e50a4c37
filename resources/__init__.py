"""The configurable resources that assets depend on."""
