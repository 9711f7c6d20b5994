"""Everything of one machine that touches the operating system: driver's end, supervisor, template and workers."""
