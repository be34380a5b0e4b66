//! Integers of 64 bits, which not every device has.

use cubecl::prelude::*;

/// `high 2^32 + low`
#[derive(CubeType, CubeTypeMut, Clone, Copy)]
pub(super) struct Wide {
    pub(super) high: u32,
    pub(super) low: u32,
}

#[cube]
impl Wide {
    pub(super) fn small(low: u32) -> Wide {
        Wide {
            high: 0u32.runtime(),
            low,
        }
    }

    pub(super) fn largest() -> Wide {
        Wide {
            high: u32::MAX.runtime(),
            low: u32::MAX.runtime(),
        }
    }

    pub(super) fn product(a: u32, b: u32) -> Wide {
        Wide {
            high: a.mul_hi(b),
            low: a * b,
        }
    }

    pub(super) fn plus(&self, other: &Wide) -> Wide {
        let low = self.low + other.low;
        let carry = u32::cast_from(low < other.low);
        Wide {
            high: self.high + other.high + carry,
            low,
        }
    }

    /// So many 2^-32 of it.
    pub(super) fn scaled(&self, fraction: u32) -> Wide {
        Wide::product(self.high, fraction).plus(&Wide::small(self.low.mul_hi(fraction)))
    }

    pub(super) fn at_least(&self, other: &Wide) -> bool {
        self.high > other.high || (self.high == other.high && self.low >= other.low)
    }
}
