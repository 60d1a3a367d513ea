//! What is to be known of a machine while it runs, set up before it starts.

use std::io;
use std::sync::Arc;

use super::Machine;
use crate::host::HostKvm;
use crate::observe::{self, MsrRange, ObserveError, Observer, Procedure, Telling};
use crate::statistics::Counts;
use crate::watch::{LastWriters, Word};

impl Machine {
    /// Before the start: has an observer told of every access to these registers, and of every instruction of a procedure.
    pub fn observe(
        &mut self,
        host: &HostKvm,
        msrs: &[MsrRange],
        procedure: Option<Procedure>,
        observer: Arc<dyn Observer>,
    ) -> Result<(), ObserveError> {
        if self.prepared.is_empty() {
            return Err(ObserveError::Started);
        }
        procedure.as_ref().map_or(Ok(()), |procedure| observe::check_steps(host, procedure))?;
        observe::filter(host, &self.vm, msrs)?;
        self.debugged_by = procedure.as_ref().map(|_| "an observer of a procedure").or(self.debugged_by);
        let telling = Telling::new(observer, procedure);
        for (index, vcpu) in self.prepared.iter_mut().enumerate() {
            vcpu.tell(telling.clone()).map_err(|source| ObserveError::Debug { vcpu: index, source })?;
        }
        Ok(())
    }

    /// Before the start: keeps who last changed each of these words, no more than [`crate::watch::MOST_WORDS`] of them. In the place
    /// of an observer.
    pub fn watch(&mut self, words: &[Word]) -> Result<Arc<LastWriters>, ObserveError> {
        if self.prepared.is_empty() {
            return Err(ObserveError::Started);
        }
        self.debugged_by = Some("a watch for who writes");
        let last = Arc::new(LastWriters::new(words, &self.shared.memory));
        for (index, vcpu) in self.prepared.iter_mut().enumerate() {
            vcpu.watch(Arc::clone(&last)).map_err(|source| ObserveError::Watch { vcpu: index, source })?;
        }
        Ok(last)
    }

    /// Before the start: keeps what it takes to read what KVM counts of each vCPU, a file a vCPU. Whether the host has that.
    pub fn keep_statistics(&mut self, host: &HostKvm) -> io::Result<bool> {
        let opened: Vec<_> = self.prepared.iter().map(|vcpu| vcpu.statistics(host)).collect::<io::Result<_>>()?;
        for (seat, statistics) in self.seats.iter_mut().zip(opened) {
            seat.statistics = statistics;
        }
        Ok(self.seats.iter().all(|seat| seat.statistics.is_some()))
    }

    /// What KVM counts of each vCPU, at this moment; `None` where the host does not say, or nothing was kept for it.
    pub fn statistics(&self) -> Option<Vec<Counts>> {
        self.seats.iter().map(|seat| seat.statistics.as_ref().and_then(|statistics| statistics.read().ok())).collect()
    }
}
