"""Bridges to other libraries, each in the module named after the library and imported only where it is used."""
