"""Tables and the report: what was published, measured by this project, and measured by you."""
