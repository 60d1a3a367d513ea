//! Load on the host: processes that do nothing but compute.

use std::process::{Child, Command, Stdio};
use std::thread;

/// One busy process for each CPU, until it is dropped.
pub(crate) struct Load(Vec<Child>);

impl Load {
    pub(crate) fn on_all_cpus() -> Self {
        let cpus = thread::available_parallelism().map_or(2, usize::from);
        Self((0..cpus).map(|_| busy()).collect())
    }
}

fn busy() -> Child {
    Command::new("sh").args(["-c", "while :; do :; done"]).stdin(Stdio::null()).spawn().unwrap()
}

impl Drop for Load {
    fn drop(&mut self) {
        for process in &mut self.0 {
            // It ends by nothing else.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}
