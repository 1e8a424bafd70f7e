//! Test failovers: a machine is started from any moment of its volumes, looked at, and removed without a trace.
//!
//! A job is a file and a process. The file ([`job`]) says how far it is and names all that it has made or is about to make; the process
//! that does the work holds a lock on the job's folder ([`store`]). Whoever gets the lock of a job that has not ended knows that its
//! process died, and undoes what there may be: so nothing is left after a kill at any instruction.
//!
//! | module | what |
//! |---|---|
//! | [`job`] | the job as a state machine without I/O |
//! | [`drive`] | the loop: step, do it, apply, save |
//! | [`store`] | the folders of the jobs, and who owns each |
//! | [`source`] | where disks come from: a fork of a volume, served over NBD |
//! | [`check`] | what is looked at in a running guest |
//! | [`runner`] | a job's steps, done: QEMU, its sockets, the checks |
//! | [`sweep`] | the end of jobs whose process died |
//! | [`together`] | machines none of which runs here before all are drained |
//! | [`summary`] | a job in a few words, for mgmt |

pub mod check;
pub mod drive;
pub mod job;
pub mod runner;
pub mod serial;
pub mod source;
pub mod store;
pub mod summary;
pub mod sweep;
pub mod together;
