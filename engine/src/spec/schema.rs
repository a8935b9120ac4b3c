//! JSON Schemas for editors, from the same tables that the reader uses.
