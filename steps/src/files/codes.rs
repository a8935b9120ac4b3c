//! Error codes of this family.

lifeboat_engine::define_codes! {}
