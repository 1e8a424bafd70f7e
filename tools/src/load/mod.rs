//! A load whose every byte says which write put it there, and the judgement of what came of it.
//!
//! The generator ([`run`]) writes to an NBD export and keeps a [`journal`] of what it submitted and when it was
//! acknowledged. Any image of the disk, current or restored at a seq, is then judged:
//!
//! * **exact** ([`exact`]): one connection, one request at a time. The order of the writes is known, so an image must be,
//!   byte by byte, the model after a number of writes; and that number is known, or at least it never goes back.
//! * **order** ([`order`]): many connections and depths. The order is known in part only (acknowledged before submitted), so
//!   every sector must show a whole write that was submitted, and no write may be missing that must be there.
//!
//! | module | what |
//! |---|---|
//! | [`op`] | what is submitted: kinds, sizes, places, from a seed |
//! | [`stamp`] | the bytes of a write |
//! | [`journal`] | what was submitted and acknowledged, on disk |
//! | [`run`] | the connections |
//! | [`exact`], [`order`] | the judgement |
//! | [`verify`] | fetches images and has them judged |

pub mod exact;
pub mod journal;
pub mod op;
pub mod order;
pub mod run;
pub mod stamp;
pub mod verify;
