//! The `afterimage` command.

use afterimage::cli::{
    AgentArgs, AgentCommand, ApplianceArgs, ApplianceCommand, Cli, Command, DataArgs, MountArgs, StatusFormat,
    VolumeCommand,
};
use afterimage::cmd::retention;
use afterimage::problem::Problem;
use afterimage::{
    attach, branch, check, demo, dump, export, failover, files, group, join, mgmt, mount, remote, restore, roles, show,
    target, up, verify,
};
use afterimage_mgmt::attach::{AttachOptions, Front};
use afterimage_mgmt::protocol::Access;
use afterimage_mgmt::verify::VerifyOptions;
use afterimage_nbd::Address;
use afterimage_trust::Role;
use clap::Parser;
use std::path::PathBuf;
use std::process::ExitCode;

fn folder(args: DataArgs) -> Result<PathBuf, Problem> {
    args.folder()
}

fn run(command: Command) -> Result<(), Problem> {
    match command {
        Command::Up(args) => up::run(args),
        Command::Agent(AgentArgs { command: Some(AgentCommand::Join(a)), .. }) => join::run(&a, Role::Agent),
        Command::Appliance(ApplianceArgs { command: Some(ApplianceCommand::Join(a)), .. }) => {
            join::run(&a, Role::Appliance)
        }
        Command::Appliance(ApplianceArgs { command: Some(ApplianceCommand::Ls(a)), .. }) => remote::appliances(&a),
        Command::Machine(command) => remote::machine(command),
        Command::Policy(command) => remote::policy(command),
        Command::Event(command) => remote::event(command),
        Command::Job(command) => remote::job(command),
        Command::Mgmt(args) => mgmt::run(args),
        Command::Group(args) => group::run(args),
        Command::Agent(args) => roles::agent(args),
        Command::Appliance(args) => roles::appliance(args),
        Command::Status(a) => {
            let format = if a.json { StatusFormat::Json } else { a.format };
            show::status(&folder(a.data)?, format, a.watch.then_some(a.interval))
        }
        Command::Point(command) => remote::points::run(command),
        Command::Volume(VolumeCommand::Retention(a)) => retention::retention(a),
        Command::Export(a) => {
            let Address::Unix(listen) = a.listen else {
                return Err(Problem::usage("an export is served at a unix socket: write --listen unix:PATH"));
            };
            let options = export::Options { volume: a.volume, at: a.at, access: Access::of(a.writable, false), listen };
            export::export(&folder(a.data)?, &options)
        }
        Command::Attach(a) => {
            let front = match (a.ublk, a.nbd) {
                (true, _) => Some(Front::Ublk),
                (_, true) => Some(Front::Nbd),
                _ => None,
            };
            let options = AttachOptions { at: a.at, front, writable: a.writable, queues: a.queues, once: false };
            attach::attach(&folder(a.data)?, &a.volume, options, a.json)
        }
        Command::Detach(a) => attach::detach(&folder(a.data)?, &a.what, a.json),
        Command::Mount(a) => {
            let MountArgs { data, volume, at, writable, partition, options, dir, json } = a;
            mount::mount(&folder(data)?, &mount::Options { volume, at, writable, partition, options, dir }, json)
        }
        Command::Umount(a) => mount::umount(&folder(a.data)?, &a.dir, a.json),
        Command::Restore(a) => {
            let options = restore::Options { volume: a.volume, at: a.at, to: a.to, format: a.format, yes: a.yes };
            // Not on standard output: the image may go there.
            eprintln!("{}", restore::restore(&folder(a.data)?, &options)?);
            Ok(())
        }
        Command::Branch(args) => branch::run(args),
        Command::Diff(a) => show::diff(&folder(a.data)?, (a.base.as_deref(), &a.from), (&a.volume, &a.to), a.json),
        Command::Wait(a) => show::wait(&folder(a.data)?, &a.volume, a.goal, a.timeout),
        Command::Verify(a) => {
            let options = VerifyOptions { range: a.range, repair: a.repair, rate: a.rate };
            verify::run(&folder(a.data)?, &a.volume, &options, a.json)
        }
        Command::Volume(VolumeCommand::Resize { data, volume, size, json }) => {
            show::resize_volume(&folder(data)?, &volume, size, json)
        }
        Command::Volume(VolumeCommand::Compare { data, volume, json }) => {
            show::compare_volume(&folder(data)?, &volume, json)
        }
        Command::Check(a) => check::run(&folder(a.data)?, &a.key, a.json),
        Command::Dump(a) => dump::run(&folder(a.data)?, a.what, a.which.as_deref(), a.json),
        Command::Target(command) => target::run(command),
        Command::Failover(command) => failover::run(command),
        Command::Files(a) => files::run(&a),
        Command::FilesGuest { disks } => files::inside::run(disks),
        Command::FreezeGuard => std::process::exit(afterimage_agent::app::guard::run().into()),
        Command::Demo(a) => demo::run(a.keep),
    }
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(p) => {
            eprintln!("afterimage: {p}");
            ExitCode::from(p.exit)
        }
    }
}
