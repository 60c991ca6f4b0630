//! Resident memory, by `/proc`.

use std::collections::HashMap;
use std::fs;

use rustix::process::Pid;

/// What the process groups hold, in bytes; those of which nothing can be read are missing. Memory that processes of a
/// group share counts for each of them.
///
/// Reads a file for every process of the system: some milliseconds where there are many.
pub(super) fn of_groups(groups: &[Pid]) -> HashMap<Pid, u64> {
    let mut memory = HashMap::new();
    if groups.is_empty() {
        return memory;
    }
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(process) = name.to_str().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
        else {
            continue;
        };
        if let Some(group) = group_of(process).filter(|group| groups.contains(group))
            && let Some(bytes) = resident(process)
        {
            *memory.entry(group).or_default() += bytes;
        }
    }
    memory
}

fn group_of(process: &str) -> Option<Pid> {
    let stat = fs::read(format!("/proc/{process}/stat")).ok()?;
    // The command's name stands in parentheses and may hold anything, parentheses too.
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    let fields = std::str::from_utf8(&stat[end + 1..]).ok()?;
    Pid::from_raw(fields.split_ascii_whitespace().nth(2)?.parse().ok()?)
}

/// `status` has it in kB; `statm` counts pages, whose size differs by machine.
fn resident(process: &str) -> Option<u64> {
    let status = fs::read(format!("/proc/{process}/status")).ok()?;
    let line = status.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"VmRSS:"))?;
    let kilobytes: u64 = std::str::from_utf8(line).ok()?.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_this_process_group_is_known() {
        let group = rustix::process::getpgrp();
        assert!(of_groups(&[group]).get(&group).is_some_and(|bytes| *bytes > 100_000));
    }
}
