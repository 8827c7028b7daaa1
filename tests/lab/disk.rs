//! A machine's disk: a root file system that it may write to without changing the one it was made from, kept over a reboot.
//!
//! The root is an overlay over an engine's root (or over this machine's own), its changes in memory; Docker's data is a directory of a
//! real disk, since overlays do not stand on overlays. Owns: those directories and the machine's mounts. Must not: run anything.

use super::space::Space;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::fs;
use std::path::{Path, PathBuf};

/// Where the changes go: memory, and not below `/`, which the kernel refuses for an overlay over `/` itself.
const MEMORY: &str = "/dev/shm";
/// Where Docker's data goes.
const DISK: &str = "/var/tmp";

/// The disk of one machine.
pub struct Disk {
    from: PathBuf,
    memory: PathBuf,
    data: PathBuf,
    /// Files of this machine shown inside: (what, where).
    shown: Vec<(PathBuf, PathBuf)>,
}

impl Disk {
    /// An empty disk over the root file system `from`.
    pub fn new(name: &str, from: &Path, shown: Vec<(PathBuf, PathBuf)>) -> Disk {
        let (memory, data) = (Path::new(MEMORY).join(name), Path::new(DISK).join(name));
        for directory in [memory.join("changes"), memory.join("work"), memory.join("root"), data.clone()] {
            fs::create_dir_all(&directory).unwrap_or_else(|e| panic!("create {}: {e}", directory.display()));
        }
        Disk { from: from.to_path_buf(), memory, data, shown }
    }

    /// Makes this disk the root of the space, with everything mounted that a booted machine has.
    pub fn mount_in(&self, space: &Space) {
        let cgroups = space.cgroup.mounts();
        space.enter(|| {
            self.mount_root();
            self.mount_kernel(&cgroups);
            self.mount_files();
            self.pivot();
        });
    }

    fn root(&self) -> PathBuf {
        self.memory.join("root")
    }

    fn mount_root(&self) {
        let show = |path: &Path| path.display().to_string();
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            show(&self.from),
            show(&self.memory.join("changes")),
            show(&self.memory.join("work"))
        );
        attach("overlay", &self.root(), "overlay", MsFlags::empty(), &options);
    }

    fn mount_kernel(&self, cgroups: &[(PathBuf, PathBuf)]) {
        let (root, none) = (self.root(), MsFlags::empty());
        bind(Path::new("/proc"), &root.join("proc"));
        bind(Path::new("/dev"), &root.join("dev"));
        attach("sysfs", &root.join("sys"), "sysfs", none, "");
        if cgroups.iter().all(|(mounted_at, _)| mounted_at != Path::new("/sys/fs/cgroup")) {
            attach("tmpfs", &root.join("sys/fs/cgroup"), "tmpfs", none, "mode=755");
        }
        for (mounted_at, ours) in cgroups {
            let inside = root.join(mounted_at.strip_prefix("/").expect("a mount point is absolute"));
            fs::create_dir_all(&inside).expect("create a cgroup mount point");
            bind(ours, &inside);
        }
        attach("tmpfs", &root.join("run"), "tmpfs", none, "mode=755");
        attach("tmpfs", &root.join("tmp"), "tmpfs", none, "mode=1777");
    }

    fn mount_files(&self) {
        let docker = self.root().join("var/lib/docker");
        fs::create_dir_all(&docker).expect("create /var/lib/docker");
        bind(&self.data, &docker);
        for (what, inside) in &self.shown {
            let inside = self.root().join(inside.strip_prefix("/").expect("where to show a file is absolute"));
            make_mount_point(what, &inside);
            bind(what, &inside);
        }
    }

    /// Changes the space's root, and shares its mounts among themselves as systemd does on a real machine.
    fn pivot(&self) {
        nix::unistd::chdir(&self.root()).expect("enter the new root");
        nix::unistd::pivot_root(".", ".").expect("change the root");
        umount2(".", MntFlags::MNT_DETACH).expect("unmount the old root");
        let shared = MsFlags::MS_SHARED | MsFlags::MS_REC;
        mount(None::<&str>, "/", None::<&str>, shared, None::<&str>).expect("share the mounts");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        for directory in [&self.memory, &self.data] {
            remove(directory);
        }
    }
}

/// Removes what dead tests left.
pub fn sweep() {
    for left in of_dead_tests(Path::new(MEMORY)).chain(of_dead_tests(Path::new(DISK))) {
        remove(&left);
    }
}

/// The directories `rsl<pid>-…` in `parent` whose process is no more.
pub fn of_dead_tests(parent: &Path) -> impl Iterator<Item = PathBuf> {
    let dead = |name: &str| {
        let pid = name.strip_prefix("rsl").and_then(|rest| rest.split_once('-')).and_then(|(pid, _)| pid.parse::<u32>().ok());
        pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists())
    };
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    entries.filter(move |entry| entry.file_name().to_str().is_some_and(dead)).map(|entry| entry.path())
}

fn remove(directory: &Path) {
    if let Err(e) = fs::remove_dir_all(directory)
        && e.kind() != std::io::ErrorKind::NotFound
    {
        eprintln!("lab: remove {}: {e}", directory.display());
    }
}

fn make_mount_point(like: &Path, at: &Path) {
    fs::create_dir_all(at.parent().expect("a mount point has a parent")).expect("create a mount point's directory");
    let made = if like.is_dir() { fs::create_dir_all(at) } else { fs::write(at, "") };
    made.unwrap_or_else(|e| panic!("create mount point {}: {e}", at.display()));
}

fn attach(source: &str, at: &Path, kind: &str, flags: MsFlags, options: &str) {
    mount(Some(source), at, Some(kind), flags, Some(options))
        .unwrap_or_else(|e| panic!("mount {kind} at {} ({options}): {e}", at.display()));
}

fn bind(what: &Path, at: &Path) {
    mount(Some(what), at, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
        .unwrap_or_else(|e| panic!("bind {} at {}: {e}", what.display(), at.display()));
}
