"""Events from files of other programs; `import_events` reads them all.

Each format has a reader that hands over ranges of entries (`chunk`), in a process of its own
(`isolated`), so that a crash, a hang or a claim of all memory inside a library is an error like any
other. `intake` checks, measures and selects the entries.

What damage is noticed:

- Delphes ROOT: all of it, where ROOT compressed the data with zlib or lz4, which have checksums;
  data stored without compression has none.
- Les Houches and HepMC3 text: momenta that are wrong by more than a relative 1e-5 of the event,
  through mass shell and momentum conservation; Les Houches files also charges. Nothing guards
  weights, scales, colours, spins, the intermediate particles of HepMC and most codes: compress the
  file with gzip, whose checksum covers every byte.
- Parquet: all data of files that have page checksums, as ours do; pandas writes none by itself. The
  footer has no checksum: files of ours say which columns and how many events they have.
- SPANet HDF5: everything in our own exports (checksums of data and structure); data sets without
  the filter ``fletcher32`` have none, then only unphysical values show.

Single bad entries (not finite, negative, |p| > E, more energy than the collision, repeated, an
angle that is none, counts that disagree) may be skipped. What cannot be skipped: a file that is
truncated, changes while it is read, or lacks a tree, branch, column or group.
"""

from massrecon.events.importers.importing import import_events

__all__ = ["import_events"]
