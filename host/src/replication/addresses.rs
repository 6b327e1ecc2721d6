//! Where the members of the cluster are reached.
//!
//! The membership in the log has a URL for each member. A member that comes back at another URL is reached there at once, as soon as
//! it has been heard: if all members have moved, they must find each other before they can elect a leader, who then changes the
//! membership. An id belongs to one disk, and every call names the id that it is meant for, so a wrong address does no harm.

use std::collections::BTreeMap;

use parking_lot::RwLock;

/// The URLs at which members were last heard, by id.
#[derive(Default)]
pub(super) struct AddressBook(RwLock<BTreeMap<u64, String>>);

impl AddressBook {
    pub(super) fn note(&self, id: u64, url: &str) {
        if self.0.read().get(&id).is_none_or(|known| known != url) {
            self.0.write().insert(id, url.to_owned());
        }
    }

    /// The URL of a member that has `stored` in the membership.
    pub(super) fn current(&self, id: u64, stored: &str) -> String {
        self.0.read().get(&id).map_or(stored, String::as_str).to_owned()
    }
}
