//! What the units of a cube tell each other.

use cubecl::prelude::*;

use super::Wide;

/// The tokens of a row up to a distance, and those beyond.
#[derive(CubeType)]
pub(super) struct Tally {
    /// Tokens up to it.
    pub(super) count: u32,
    pub(super) weight_high: u32,
    pub(super) weight_low: u32,
    /// The largest distance up to it.
    pub(super) inside: u32,
    /// The least distance beyond.
    pub(super) outside: u32,
}

#[cube]
impl Tally {
    /// What the tokens up to the distance weigh together.
    pub(super) fn weight(&self) -> Wide {
        Wide {
            high: self.weight_high,
            low: self.weight_low,
        }
    }
}

/// A number of each kind per unit.
#[derive(CubeType)]
pub(super) struct Shared {
    count: SharedMemory<u32>,
    high: SharedMemory<u32>,
    low: SharedMemory<u32>,
    inside: SharedMemory<u32>,
    outside: SharedMemory<u32>,
    token: SharedMemory<u32>,
}

#[cube]
impl Shared {
    pub(super) fn new(#[comptime] units: usize) -> Shared {
        Shared {
            count: SharedMemory::<u32>::new(units),
            high: SharedMemory::<u32>::new(units),
            low: SharedMemory::<u32>::new(units),
            inside: SharedMemory::<u32>::new(units),
            outside: SharedMemory::<u32>::new(units),
            token: SharedMemory::<u32>::new(1usize),
        }
    }

    /// The largest of the units' numbers.
    pub(super) fn largest(&mut self, mine: u32, #[comptime] units: usize) -> u32 {
        let unit = UNIT_POS as usize;
        self.inside[unit] = mine;
        sync_cube();
        let mut reach = comptime!(units / 2).runtime();
        while reach > 0 {
            if unit < reach {
                self.inside[unit] = max(self.inside[unit], self.inside[unit + reach]);
            }
            sync_cube();
            reach /= 2;
        }
        let largest = self.inside[0];
        sync_cube();
        largest
    }

    /// The units' tallies as one.
    pub(super) fn join(&mut self, mine: &Tally, #[comptime] units: usize) -> Tally {
        let unit = UNIT_POS as usize;
        self.count[unit] = mine.count;
        self.put(unit, &mine.weight());
        self.inside[unit] = mine.inside;
        self.outside[unit] = mine.outside;
        sync_cube();
        let mut reach = comptime!(units / 2).runtime();
        while reach > 0 {
            if unit < reach {
                let other = unit + reach;
                self.count[unit] += self.count[other];
                let weight = self.wide(unit).plus(&self.wide(other));
                self.put(unit, &weight);
                self.inside[unit] = max(self.inside[unit], self.inside[other]);
                self.outside[unit] = min(self.outside[unit], self.outside[other]);
            }
            sync_cube();
            reach /= 2;
        }
        let joined = Tally {
            count: self.count[0],
            weight_high: self.high[0],
            weight_low: self.low[0],
            inside: self.inside[0],
            outside: self.outside[0],
        };
        sync_cube();
        joined
    }

    /// The sum of what the units before this one have; [`last`](Self::last) is then the sum of all.
    pub(super) fn before(&mut self, mine: &Wide, #[comptime] units: usize) -> Wide {
        let unit = UNIT_POS as usize;
        // Nothing of an earlier sum is read any more.
        sync_cube();
        self.put(unit, mine);
        sync_cube();
        let mut reach = 1usize.runtime();
        while reach < units {
            let mut sum = self.wide(unit);
            if unit >= reach {
                sum = sum.plus(&self.wide(unit - reach));
            }
            sync_cube();
            self.put(unit, &sum);
            sync_cube();
            reach *= 2;
        }
        let mut before = Wide::small(0u32.runtime());
        if unit > 0 {
            before = self.wide(unit - 1);
        }
        before
    }

    /// The sum of what all units have, after [`before`](Self::before).
    pub(super) fn last(&self, #[comptime] units: usize) -> Wide {
        self.wide(comptime!(units - 1).runtime())
    }

    /// One unit names the token.
    pub(super) fn choose(&mut self, token: u32) {
        self.token[0] = token;
    }

    /// The token that a unit named.
    pub(super) fn chosen(&self) -> u32 {
        sync_cube();
        self.token[0]
    }

    fn put(&mut self, unit: usize, wide: &Wide) {
        self.high[unit] = wide.high;
        self.low[unit] = wide.low;
    }

    fn wide(&self, unit: usize) -> Wide {
        Wide {
            high: self.high[unit],
            low: self.low[unit],
        }
    }
}
