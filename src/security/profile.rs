//! tmp
use super::*;
use crate::Result;
/// tmp
#[derive(Debug, Clone)]
pub struct Profile;
#[allow(missing_docs)]
impl Profile {
    pub const DOCKER_2026_11: Profile = Profile;
    pub fn capabilities(&self) -> CapabilitySet {
        CapabilitySet::DOCKER_2026_11
    }
    pub fn seccomp_filter(&self, _: CapabilitySet) -> Result<Option<std::sync::Arc<[u8]>>> {
        Ok(None)
    }
    pub fn no_new_privileges(&self) -> bool {
        true
    }
    pub fn masking(&self) -> Masking {
        Masking::DOCKER_2026_11
    }
}
