//! Models straight from the Hugging Face hub: a name goes in, a directory with the model's files
//! comes out.
//!
//! The files lie in the cache of Python's huggingface_hub, in its layout ([`cache`]), and the
//! environment is read as it reads it ([`settings`]), so both share their downloads. Only what is
//! needed is downloaded ([`files`]), several files at a time, each continued where it broke off
//! and checked against its hash before it gets its name ([`download`], [`partial`]).
//!
//! Holds true: a directory that [`Hub::fetch`] returns has every file that the model needs, and
//! each was whole when it was put there. The token goes to the hub alone, and into no message.
//!
//! **Why not the crate `hf-hub`.** Its 0.5 locks beside the blobs and names partial files in ways
//! of its own, which Python's library does not see; its 1.0 always downloads from the first byte
//! on. Neither checks a hash, knows `HF_HUB_OFFLINE`, or tells how far it is and why it was
//! refused, so all of this would stand around it, and 1.0 brings 118 crates. hyper is here
//! already; with TLS and SHA-1 this module adds 15.

mod api;
mod cache;
mod connect;
mod download;
mod error;
mod files;
mod http;
mod partial;
mod progress;
mod repo;
mod settings;
#[cfg(test)]
mod tests;

pub(crate) use error::HubError;
pub(crate) use progress::Meter;
pub(crate) use repo::{RepoId, Revision};
pub(crate) use settings::Settings;

use std::collections::BTreeSet;
use std::path::PathBuf;

use futures_util::{StreamExt, TryStreamExt, stream};
use hyper_util::client::proxy::matcher::Matcher;
use tracing::{debug, info, warn};

use api::{Blob, Listing};
use cache::Cache;
use download::Download;
use error::size;
use http::Client;
use progress::Display;
use settings::Retries;

/// Files that are downloaded at the same time, as many as Python's library does.
const PARALLEL_FILES: usize = 8;

/// What is wanted of the hub.
#[derive(Clone, Debug)]
pub(crate) struct Order {
    pub(crate) repo: RepoId,
    pub(crate) revision: Revision,
    /// False where the files that describe the model are enough.
    pub(crate) weights: bool,
}

/// The hub, and the cache of what came from it.
pub(crate) struct Hub {
    settings: Settings,
    client: Client,
}

/// A file of a model, and its contents.
type File = (String, Blob);

impl Hub {
    pub(crate) fn new(settings: Settings) -> Result<Hub, HubError> {
        let client = Client::new(&settings, Matcher::from_env())?;
        Ok(Hub { settings, client })
    }

    /// The directory of the model's files, downloaded as far as they are not in the cache.
    ///
    /// The hub is asked what a branch or tag means now. If it cannot be asked, or may not be, what
    /// the cache has of it is served, provided that it is whole.
    pub(crate) async fn fetch(&self, order: &Order, meter: &Meter) -> Result<PathBuf, HubError> {
        let cache = Cache::new(&self.settings, &order.repo);
        let cached = cache.commit_of(&order.revision);
        if let Some(commit) = order.revision.commit()
            && let Some(tree) = cache.tree(&commit)
            && cache.lacks(&tree, order.weights).is_none()
        {
            // A commit is the same for all time: there is nothing to ask.
            return Ok(cache.snapshot(&commit));
        }
        let there = match cached {
            None => Err("nothing of it is there".to_owned()),
            Some(commit) => {
                let listing = cache.tree(&commit).unwrap_or_else(|| cache.scan(&commit));
                cache.lacks(&listing, order.weights).map_or(Ok(cache.snapshot(&commit)), Err)
            }
        };
        if let Some(variable) = self.settings.offline {
            return there.map_err(|missing| self.offline(order, missing, variable));
        }
        // Who has a whole copy need not wait long for a hub that does not answer.
        let retries = match &there {
            Ok(_) => Retries { max: 0, ..self.settings.retries },
            Err(_) => self.settings.retries,
        };
        match (self.listing(order, retries).await, there) {
            (Ok(listing), _) => {
                let display = Display::choose(self.settings.progress_bars);
                tokio::select! {
                    fetched = self.complete(order, &cache, listing, meter) => fetched,
                    never = meter.show(display) => match never {},
                }
            }
            (Err(error), Ok(snapshot)) if error.leaves_the_cache() => {
                warn!(%error, "the hub is of no help, serving what the cache has");
                Ok(snapshot)
            }
            (Err(error), _) => Err(error),
        }
    }

    /// Downloads what a snapshot lacks: first the index, which names the files of weights, then all
    /// others together.
    async fn complete(
        &self,
        order: &Order,
        cache: &Cache,
        listing: Listing,
        meter: &Meter,
    ) -> Result<PathBuf, HubError> {
        let commit = &listing.commit;
        let unfit = |lack| HubError::Unfit { repo: order.repo.to_string(), lack };
        let names: BTreeSet<&str> = listing.files.keys().map(String::as_str).collect();
        let mut wanted = files::description(&names).map_err(unfit)?;
        let group = Group { hub: self, order, cache, listing: &listing };
        if order.weights {
            if names.contains(files::INDEX) {
                // So small that its progress would only say that it is done.
                group.download(&[files::INDEX.to_owned()], &Meter::default()).await?;
            }
            wanted.extend(cache.weights(&listing).map_err(unfit)?);
        }
        group.download(&wanted, meter).await?;
        // Last: until here, what the revision meant before is the better answer offline.
        cache.remember_commit(&order.revision, commit);
        info!(model = %order.repo, %commit, "all files are there");
        Ok(cache.snapshot(commit))
    }

    fn offline(&self, order: &Order, missing: String, why: &'static str) -> HubError {
        HubError::Offline {
            repo: order.repo.to_string(),
            revision: order.revision.to_string(),
            cache: self.settings.cache.display().to_string(),
            missing,
            why,
        }
    }
}

/// Files of one commit that are downloaded together.
struct Group<'a> {
    hub: &'a Hub,
    order: &'a Order,
    cache: &'a Cache,
    listing: &'a Listing,
}

impl Group<'_> {
    /// Downloads what the snapshot lacks of `names`; the first error ends all.
    async fn download(&self, names: &[String], meter: &Meter) -> Result<(), HubError> {
        let Group { hub, order, cache, listing } = *self;
        let commit = &listing.commit;
        let missing = names.iter().filter(|name| {
            !cache.has(commit, name, listing.files.get(*name).and_then(Option::as_ref))
        });
        let blobs = stream::iter(missing).map(|name| self.blob(name));
        let wanted: Vec<File> = blobs.buffer_unordered(PARALLEL_FILES).try_collect().await?;
        if wanted.is_empty() {
            return Ok(());
        }
        self.make_room(&wanted)?;
        cache.prepare()?;
        cache.remember_tree(listing);
        let total = sum(wanted.iter().map(|(_, blob)| blob.size));
        let (files, size) = (wanted.len(), size(total));
        info!(model = %order.repo, %commit, files, size, "downloading");
        meter.add_total(total);
        // Of files with the same contents, the first one brings them.
        let mut brought = BTreeSet::new();
        let (first, repeated): (Vec<&File>, Vec<&File>) =
            wanted.iter().partition(|(_, blob)| brought.insert(&blob.etag));
        for files in [first, repeated] {
            let downloads = stream::iter(files).map(|(file, blob)| async move {
                Download { hub, order, cache, meter, commit, file, blob }.run().await?;
                debug!(file, bytes = blob.size, "file is there");
                Ok::<(), HubError>(())
            });
            downloads.buffer_unordered(PARALLEL_FILES).try_collect::<()>().await?;
        }
        Ok(())
    }

    async fn blob(&self, name: &str) -> Result<File, HubError> {
        let blob = match self.listing.files.get(name) {
            Some(Some(blob)) => blob.clone(),
            _ => self.hub.look_up(self.order, &self.listing.commit, name).await?,
        };
        Ok((name.to_owned(), blob))
    }

    /// Fails before the first byte if the disk cannot take the last.
    fn make_room(&self, wanted: &[File]) -> Result<(), HubError> {
        let needed = sum(wanted.iter().map(|(_, blob)| self.cache.missing_bytes(blob)));
        match self.cache.free_bytes() {
            Some(free) if free < needed => Err(HubError::NoSpace {
                directory: self.cache.root().display().to_string(),
                needed,
                free,
            }),
            _ => Ok(()),
        }
    }
}

/// Sizes are what a server says, so their sum may be more than any disk has.
fn sum(sizes: impl Iterator<Item = u64>) -> u64 {
    sizes.fold(0, u64::saturating_add)
}
