//! A machine's own cgroup, in every hierarchy that this machine has mounted (version 1, version 2 or both).
//!
//! Owns: directories called `rsl…` below the cgroup that the test runs in. Must not: touch any other.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// One directory per mounted hierarchy.
pub struct Cgroup {
    hierarchies: Vec<Hierarchy>,
}

/// A mounted cgroup file system and our directory in it.
struct Hierarchy {
    mounted_at: PathBuf,
    ours: PathBuf,
}

impl Cgroup {
    /// The directories `name`, made, below where this process is.
    pub fn new(name: &str) -> Cgroup {
        let hierarchies = mounted().into_iter().map(|(mounted_at, here)| Hierarchy { mounted_at, ours: here.join(name) });
        let cgroup = Cgroup { hierarchies: hierarchies.collect() };
        for hierarchy in &cgroup.hierarchies {
            let ours = &hierarchy.ours;
            fs::create_dir_all(ours).unwrap_or_else(|e| panic!("create cgroup {}: {e}", ours.display()));
            inherit_cpuset(ours);
        }
        cgroup
    }

    /// The files to write a pid to, to be in the cgroup.
    pub fn procs_files(&self) -> Vec<PathBuf> {
        self.hierarchies.iter().map(|h| h.ours.join("cgroup.procs")).collect()
    }

    /// Pairs (where a hierarchy is mounted, our directory in it): what to mount inside the machine, and where.
    pub fn mounts(&self) -> Vec<(PathBuf, PathBuf)> {
        self.hierarchies.iter().map(|h| (h.mounted_at.clone(), h.ours.clone())).collect()
    }

    /// Stops every process of the machine where it is, or lets it run on.
    pub fn freeze(&self, frozen: bool) {
        let v1 = if frozen { "FROZEN" } else { "THAWED" };
        let v2 = if frozen { "1" } else { "0" };
        for hierarchy in &self.hierarchies {
            for (file, state) in [("freezer.state", v1), ("cgroup.freeze", v2)] {
                let path = hierarchy.ours.join(file);
                if path.exists() {
                    let _ = fs::write(path, state);
                }
            }
        }
    }

    /// Removes the directories; everything that was in them has ended.
    pub fn remove(&self) {
        for hierarchy in &self.hierarchies {
            remove_tree(&hierarchy.ours);
        }
    }
}

/// Removes what dead tests left.
pub fn sweep() {
    for (_, here) in mounted() {
        for left in super::disk::of_dead_tests(&here) {
            remove_tree(&left);
        }
    }
}

/// Every mounted hierarchy as (mount point, the directory of the cgroup that this process is in).
fn mounted() -> Vec<(PathBuf, PathBuf)> {
    let mounts = fs::read_to_string("/proc/mounts").expect("read /proc/mounts");
    let own = fs::read_to_string("/proc/self/cgroup").expect("read /proc/self/cgroup");
    let rows = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    rows.filter(|row| row[1].starts_with("/sys/fs/cgroup") && row[2].starts_with("cgroup"))
        .map(|row| (PathBuf::from(row[1]), here(Path::new(row[1]), own_path(&own, row[2], row[3]))))
        .collect()
}

/// The path of this process's cgroup in the hierarchy with these mount options, from `/proc/self/cgroup` (cgroups(7)).
fn own_path<'a>(own: &'a str, kind: &str, options: &str) -> &'a str {
    let ours = |controllers: &str| match kind {
        "cgroup2" => controllers.is_empty(),
        _ => !controllers.is_empty() && controllers.split(',').all(|c| options.split(',').any(|o| o == c)),
    };
    own.lines().map(|line| line.splitn(3, ':').collect::<Vec<_>>()).find(|row| row.len() == 3 && ours(row[1])).map_or("/", |row| row[2])
}

/// The directory of cgroup `path` below its mount point, or the mount point where that shows only a part of the hierarchy.
fn here(mounted_at: &Path, path: &str) -> PathBuf {
    let here = mounted_at.join(path.trim_start_matches('/'));
    if here.is_dir() { here } else { mounted_at.to_path_buf() }
}

/// Version 1's cpuset takes no process until it was told its CPUs and memory nodes.
fn inherit_cpuset(ours: &Path) {
    let parent = ours.parent().expect("a cgroup of ours has a parent");
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if ours.join("cpuset.clone_children").exists() || ours.join("cgroup.clone_children").exists() {
            let _ = fs::read(parent.join(file)).and_then(|value| fs::write(ours.join(file), value));
        }
    }
}

/// Removes a cgroup and those below it. The kernel says busy until the last dead process of it is gone for good.
fn remove_tree(top: &Path) {
    let deadline = Instant::now() + Duration::from_secs(5);
    for entry in fs::read_dir(top).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    while top.exists() && fs::remove_dir(top).is_err() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
}
