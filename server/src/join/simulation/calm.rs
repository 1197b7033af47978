//! The end of each run: the world is calm, and whatever happened before, all agree, names are whose they are, and nothing is
//! left of who did not come.

use std::rc::Rc;

use super::super::node_password::Record;
use super::world::SOON;
use super::{LAG, MACHINES, SWEEP, Simulation};

impl Simulation {
    /// The world is calm: all servers see and can do everything, if by wrong clocks.
    pub(super) fn settle(&mut self) -> Result<(), String> {
        for server in 0..self.processes.len() {
            self.start(server);
            let world = &mut *self.world();
            let now = world.now;
            let server = &mut world.servers[server];
            (server.reaches, server.follows, server.lossy) = (true, true, 0);
            server.well_since.get_or_insert(now);
            (server.files.disk().full, server.files.disk().fuse) = (false, None);
        }
        self.world().say(|| "the world is calm".to_owned());
        self.wait(SOON + SWEEP);
        self.check_agreement()?;
        self.check_names()?;
        // Who does not come in time has no name.
        for _ in 0..7 {
            self.pass(300);
        }
        self.check_agreement()?;
        let state = self.world().state();
        let kept = state
            .records
            .iter()
            .find(|(_, record)| record.owner.is_none() || record.window.is_some());
        kept.map_or(Ok(()), |kept| Err(format!("nobody came, and there is {kept:?}")))
    }

    fn check_agreement(&mut self) -> Result<(), String> {
        // What has just happened is seen a moment later.
        for _ in 0..3 {
            self.pass(LAG + 1);
        }
        let world = self.world();
        let state = world.state();
        let row = |(name, record): (&String, &Rc<Record>)| (name.clone(), record.hash.clone());
        let rows = Some(state.records.iter().map(row).collect());
        for (number, server) in world.servers.iter().enumerate() {
            let disk = server.files.disk();
            if disk.by_name() != rows {
                return Err(format!("server {number} has {:?}, and there is {rows:?}", disk.rows));
            }
            let mut written = disk.written().into_iter();
            if !written.all(|(name, uid)| state.records.get(&name).is_some_and(|record| record.uid == uid)) {
                return Err(format!(
                    "server {number} has rows of other records: {:?}",
                    disk.written()
                ));
            }
        }
        let apart = state
            .records
            .iter()
            .find(|(name, record)| record.owner.as_ref() != state.nodes.get(*name));
        apart.map_or(Ok(()), |apart| {
            Err(format!("{apart:?} is not its Node's: {:?}", state.nodes))
        })
    }

    /// Whoever has a name gets in, and nobody else.
    fn check_names(&mut self) -> Result<(), String> {
        for index in 0..MACHINES.len() {
            let server = self.draw(self.processes.len());
            self.joins.clear();
            self.world().joins.clear();
            self.come(index, server);
            let (join, _) = self.joins.last().ok_or("nobody came")?;
            let join = join.clone();
            let before = self.world().state();
            self.idle();
            let after = self.world().state();
            let hash = format!("$1:{}", join.password);
            let [old, new] = [before, after].map(|state| state.records.get(join.name).cloned());
            let is_in = new.as_ref().is_some_and(|record| record.hash == hash);
            let may = old.is_none_or(|old| {
                let open = old.window.is_some_and(|window| window.is_open(join.at));
                old.hash == hash || open || join.proof.is_some() && join.proof == old.key
            });
            if is_in != may {
                return Err(format!("{join:?} may get in: {may}, and is in: {is_in}"));
            }
        }
        Ok(())
    }
}
