//! Device status: the phases of a driver's initialisation (virtio 1.2, sections 2.1 and 3.1.1).

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
};

/// The bits a driver sets while it initialises the device, in their order.
const STEPS: [(u32, Step); 4] = [
    (VIRTIO_CONFIG_S_ACKNOWLEDGE, Step::Acknowledge),
    (VIRTIO_CONFIG_S_DRIVER, Step::Driver),
    (VIRTIO_CONFIG_S_FEATURES_OK, Step::FeaturesOk),
    (VIRTIO_CONFIG_S_DRIVER_OK, Step::DriverOk),
];
const STEP_BITS: u32 = VIRTIO_CONFIG_S_ACKNOWLEDGE
    | VIRTIO_CONFIG_S_DRIVER
    | VIRTIO_CONFIG_S_FEATURES_OK
    | VIRTIO_CONFIG_S_DRIVER_OK;
const END_BITS: u32 = VIRTIO_CONFIG_S_FAILED | VIRTIO_CONFIG_S_NEEDS_RESET;

/// A step of the initialisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Acknowledge,
    Driver,
    FeaturesOk,
    DriverOk,
    /// The driver gives up.
    Failed,
}

impl Step {
    fn bit(self) -> u32 {
        match self {
            Self::Acknowledge => VIRTIO_CONFIG_S_ACKNOWLEDGE,
            Self::Driver => VIRTIO_CONFIG_S_DRIVER,
            Self::FeaturesOk => VIRTIO_CONFIG_S_FEATURES_OK,
            Self::DriverOk => VIRTIO_CONFIG_S_DRIVER_OK,
            Self::Failed => VIRTIO_CONFIG_S_FAILED,
        }
    }
}

/// The device status register.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Status(u32);

impl Status {
    pub(super) fn bits(self) -> u32 {
        self.0
    }

    /// The steps a driver takes by writing `value`, in order; `None` if it may not write that:
    /// it clears a bit, skips a step, sets an unknown bit, or goes on where only a reset helps.
    /// Several steps in one write are taken one after the other.
    pub(super) fn steps_to(self, value: u32) -> Option<Vec<Step>> {
        let added = value & !self.0;
        let cleared = self.0 & !value & !VIRTIO_CONFIG_S_NEEDS_RESET;
        let steps = value & STEP_BITS;
        let mut in_order = 0;
        for (bit, _) in STEPS.iter().take_while(|(bit, _)| steps & bit != 0) {
            in_order |= bit;
        }
        let legal = cleared == 0
            && added & !(STEP_BITS | VIRTIO_CONFIG_S_FAILED) == 0
            && steps == in_order
            && (self.0 & END_BITS == 0 || added & STEP_BITS == 0);
        if !legal {
            return None;
        }
        let failed = (VIRTIO_CONFIG_S_FAILED, Step::Failed);
        let all = STEPS.into_iter().chain([failed]);
        Some(all.filter(|(bit, _)| added & bit != 0).map(|(_, step)| step).collect())
    }

    pub(super) fn take(&mut self, step: Step) {
        self.0 |= step.bit();
    }

    pub(super) fn set_needs_reset(&mut self) {
        self.0 |= VIRTIO_CONFIG_S_NEEDS_RESET;
    }

    /// Features may be written: a driver is there and has not settled them.
    pub(super) fn negotiates_features(self) -> bool {
        self.is_within(Step::Driver, Step::FeaturesOk)
    }

    /// Queues may be set up: features are settled and the device does not run.
    pub(super) fn configures_queues(self) -> bool {
        self.is_within(Step::FeaturesOk, Step::DriverOk)
    }

    /// The configuration space may be written.
    pub(super) fn takes_config(self) -> bool {
        self.0 & END_BITS == 0 && self.0 & VIRTIO_CONFIG_S_FEATURES_OK != 0
    }

    /// The device runs.
    pub(super) fn is_live(self) -> bool {
        self.0 & END_BITS == 0 && self.0 & VIRTIO_CONFIG_S_DRIVER_OK != 0
    }

    fn is_within(self, after: Step, before: Step) -> bool {
        self.0 & END_BITS == 0 && self.0 & after.bit() != 0 && self.0 & before.bit() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PHASES: [u32; 5] = [0, 1, 3, 11, 15];

    #[test]
    fn a_driver_may_go_forward_in_order_and_give_up_and_nothing_else() {
        for (from, &current) in PHASES.iter().enumerate() {
            for value in (0..=0x1ff).chain([1 << 31, u32::MAX]) {
                let to = PHASES.iter().position(|&phase| phase == value & !0x80);
                let legal = to.is_some_and(|to| to >= from) && (value & !0x80) < 0x80;
                let steps = Status(current).steps_to(value);
                assert_eq!(steps.is_some(), legal, "{current:#x} to {value:#x}");
            }
        }
    }

    #[test]
    fn steps_come_in_the_order_of_the_specification() {
        use Step::{Acknowledge, Driver, DriverOk, Failed, FeaturesOk};
        assert_eq!(Status(0).steps_to(3), Some(vec![Acknowledge, Driver]));
        assert_eq!(Status(3).steps_to(15), Some(vec![FeaturesOk, DriverOk]));
        assert_eq!(Status(3).steps_to(0x83), Some(vec![Failed]));
        assert_eq!(Status(11).steps_to(11), Some(vec![]));
    }

    #[test]
    fn after_an_end_only_failed_may_be_added() {
        for end in [VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_NEEDS_RESET] {
            for phase in PHASES {
                let status = Status(phase | end);
                assert!(!status.is_live() && !status.configures_queues());
                assert!(!status.negotiates_features() && !status.takes_config());
                assert!(status.steps_to(phase | end | VIRTIO_CONFIG_S_FAILED).is_some());
                for forward in PHASES.into_iter().filter(|&forward| forward > phase) {
                    assert_eq!(status.steps_to(forward | end), None);
                }
            }
        }
        assert_eq!(Status(0x4f).steps_to(0x0f), Some(vec![]));
        assert_eq!(Status(0x8f).steps_to(0x0f), None);
    }
}
