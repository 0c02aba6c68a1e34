"""Cases of families added in 2026: mixtures of experts and newer dense decoders."""

from family_case import Case

MORE: tuple[Case, ...] = ()
