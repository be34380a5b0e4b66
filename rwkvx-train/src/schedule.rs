//! The learning rate as a pure function of the step: warm-up, then half a cosine, as RWKV-LM trains.

use burn::lr_scheduler::LrScheduler;
use burn::module::EmptyRecord;
use burn::tensor::backend::Backend;

/// Warm-up and cosine of one phase. Burn's own cosine restarts after its last step, this one stays at the final rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// Rate at the end of the warm-up.
    pub initial: f64,
    /// Rate at the end of the phase; equal to `initial` for a constant rate.
    pub last: f64,
    /// Steps of warm-up; the first step runs at a hundredth of the rate.
    pub warmup_steps: u64,
    /// Steps of the phase.
    pub steps: u64,
}

impl Schedule {
    /// The learning rate of the update after `done` updates.
    ///
    /// `initial ((1 + f) / 2 + (1 - f) / 2 cos(pi p))` with `f = last / initial` and `p` the part of the steps after the
    /// warm-up that is done; during the warm-up also times `0.01 + 0.99 done / warmup_steps`. Source: RWKV-LM's
    /// `RWKV-v7/train_temp/src/trainer.py`.
    pub fn rate(&self, done: u64) -> f64 {
        let after_warmup = self.steps.saturating_sub(self.warmup_steps).max(1);
        let part = done.saturating_sub(self.warmup_steps) as f64 / after_warmup as f64;
        let cosine = (std::f64::consts::PI * part.min(1.0)).cos();
        let rate = self.last + (self.initial - self.last) * (0.5 + 0.5 * cosine);
        if done < self.warmup_steps {
            rate * (0.01 + 0.99 * done as f64 / self.warmup_steps as f64)
        } else {
            rate
        }
    }

    /// The schedule as the learner drives it, from `done` updates on.
    pub fn from_step(self, done: u64) -> ScheduleFromStep {
        ScheduleFromStep {
            schedule: self,
            done,
        }
    }
}

/// A [`Schedule`] and where it is.
#[derive(Clone, Copy, Debug)]
pub struct ScheduleFromStep {
    schedule: Schedule,
    done: u64,
}

impl LrScheduler for ScheduleFromStep {
    /// Nothing: the rate follows from the step, which the checkpoint holds.
    type Record<B: Backend> = EmptyRecord;

    fn step(&mut self) -> f64 {
        let rate = self.schedule.rate(self.done);
        self.done += 1;
        rate
    }

    fn to_record<B: Backend>(&self) -> EmptyRecord {
        EmptyRecord::new()
    }

    fn load_record<B: Backend>(self, _record: EmptyRecord) -> Self {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCHEDULE: Schedule = Schedule {
        initial: 6e-4,
        last: 6e-5,
        warmup_steps: 10,
        steps: 110,
    };

    fn assert_rate(done: u64, expected: f64) {
        let rate = SCHEDULE.rate(done);
        assert!(
            (rate - expected).abs() < 1e-12,
            "after {done} updates: {rate}, expected {expected}"
        );
    }

    #[test]
    fn warm_up_starts_at_a_hundredth_and_ends_at_the_full_rate() {
        assert_rate(0, 6e-4 * 0.01);
        assert_rate(5, 6e-4 * (0.01 + 0.99 * 0.5));
        assert_rate(10, 6e-4);
    }

    #[test]
    fn the_cosine_passes_the_mean_half_way_and_stays_at_the_final_rate() {
        assert_rate(60, (6e-4 + 6e-5) / 2.0);
        assert_rate(110, 6e-5);
        assert_rate(10_000, 6e-5);
    }

    #[test]
    fn equal_rates_are_constant_after_the_warm_up() {
        let constant = Schedule {
            initial: 1e-5,
            last: 1e-5,
            ..SCHEDULE
        };
        assert!((10..200).all(|done| constant.rate(done) == 1e-5));
    }

    #[test]
    fn a_phase_shorter_than_its_warm_up_has_finite_rates() {
        let short = Schedule {
            steps: 3,
            ..SCHEDULE
        };
        assert!((0..5).all(|done| short.rate(done).is_finite() && short.rate(done) > 0.0));
    }

    #[test]
    fn starting_at_a_step_continues_the_sequence() {
        let mut scheduler = SCHEDULE.from_step(37);
        assert_eq!(scheduler.step(), SCHEDULE.rate(37));
        assert_eq!(scheduler.step(), SCHEDULE.rate(38));
    }
}
