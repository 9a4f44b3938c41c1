"""`floq export`: a policy as a standalone program, a list of operations on arrays; docs/export.md says how it works."""
