//! Recovery plans: machines in order, and what is to be done between them.
//!
//! | module | what |
//! |---|---|
//! | [`file`] | a plan as TOML: read and checked |
//! | [`record`] | what is kept of one that is carried out |
//! | [`run`] | carrying one out, as a state machine without I/O and clock |

pub mod file;
pub mod record;
pub mod run;
