//! The kinds of datastore that servers can share, mistreated the same way.

use std::net::SocketAddr;

use tests::database::etcd::{Etcd, Form};
use tests::database::{MariaDb, Postgres, SqlServer, flags};
use tests::lab::{BACKYARD, Proxy};

/// A datastore in the lab's backyard.
pub enum Database {
    /// Reached through the proxy only, as through the address that a fail-over moves.
    Postgres(Box<Postgres>, Proxy),
    MariaDb(Box<MariaDb>),
    Etcd(Box<Etcd>),
}

impl Database {
    pub fn postgres() -> Self {
        let server = Box::new(Postgres::start_at(BACKYARD));
        let way = Proxy::start(BACKYARD, server.listens());
        Self::Postgres(server, way)
    }

    pub fn mariadb() -> Self {
        Self::MariaDb(Box::new(MariaDb::start_at(BACKYARD)))
    }

    /// Of three members.
    pub fn etcd() -> Self {
        let form = Form {
            address: Some(BACKYARD),
            members: 3,
            apart: true,
            tls: false,
            quota: None,
        };
        Self::Etcd(Box::new(Etcd::start_as(form).unwrap()))
    }

    /// What a server is given; SQL servers with their certificate to be verified.
    pub fn flags(&self) -> Vec<String> {
        match self {
            Self::Postgres(server, way) => {
                flags(&server.endpoint_at(way.address(), "cluster"), &server.certificates.ca)
            }
            Self::MariaDb(server) => flags(&server.endpoint("cluster", ""), &server.certificates.ca),
            Self::Etcd(etcd) => vec![format!("--datastore-endpoint={}", etcd.endpoint())],
        }
    }

    /// Where servers find it: its address, or those of all its members.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        match self {
            Self::Postgres(_, way) => vec![way.address()],
            Self::MariaDb(server) => vec![server.listens()],
            Self::Etcd(etcd) => (0..etcd.size()).map(|number| etcd.address(number)).collect(),
        }
    }

    /// Ends it, all of it, as a power cut would.
    pub fn kill(&mut self) {
        match self {
            Self::Postgres(server, _) => server.kill(),
            Self::MariaDb(server) => server.kill(),
            Self::Etcd(etcd) => (0..etcd.size()).for_each(|number| etcd.kill(number).unwrap()),
        }
    }

    /// Starts it on what is there.
    pub fn start_again(&mut self) {
        match self {
            Self::Postgres(server, _) => server.start_again(),
            Self::MariaDb(server) => server.start_again(),
            Self::Etcd(etcd) => etcd.start_all_again().unwrap(),
        }
    }

    /// It stands still, connections and all.
    pub fn pause(&mut self) {
        match self {
            Self::Postgres(server, _) => server.pause(),
            Self::MariaDb(server) => server.pause(),
            Self::Etcd(etcd) => (0..etcd.size()).for_each(|number| etcd.pause(number).unwrap()),
        }
    }

    /// It goes on.
    pub fn resume(&mut self) {
        match self {
            Self::Postgres(server, _) => server.resume(),
            Self::MariaDb(server) => server.resume(),
            Self::Etcd(etcd) => (0..etcd.size()).for_each(|number| etcd.resume(number).unwrap()),
        }
    }

    /// PostgreSQL, and the way to it.
    pub fn behind_a_proxy(&mut self) -> (&mut Postgres, &Proxy) {
        match self {
            Self::Postgres(server, way) => (server, way),
            Self::MariaDb(_) | Self::Etcd(_) => panic!("this cluster is not on PostgreSQL"),
        }
    }

    /// The members of etcd.
    pub fn members(&mut self) -> &mut Etcd {
        match self {
            Self::Etcd(etcd) => etcd,
            Self::Postgres(..) | Self::MariaDb(_) => panic!("this cluster is not on etcd"),
        }
    }
}
