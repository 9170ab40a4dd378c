// Package state keeps what a node must remember: its VMs with their roles and generations, the journal of plans, the history of
// what happened, and the ports it gave away. One bbolt file, one process.
//
// # Promises
//
//   - A method that returned nil is durable: the data were synced. After kill -9 or a power cut at any moment the file
//     holds every acknowledged change; one that was under way is there entirely or not at all.
//   - What belongs together goes in one [Store.Do]: a new generation, the intent that follows from it and the line in the history cost one
//     sync, and are never seen apart.
//   - The journal is written before the action. In an intent that is still open after a restart every step without an outcome
//     may have run, run partly, or not at all; the reader has to look at the world, not at the journal.
//   - A damaged file is reported ([ErrCorrupt]) and left as it is. It is never repaired, emptied or replaced: generations in it may be
//     all that stands between a guest and old data. Every value carries a checksum that also covers its key.
//   - A file that doesn't exist is made; an empty one is damaged. Creation is atomic.
//
// # Schema
//
// Values are JSON inside an envelope with a CRC-32C. The schema has a major and a minor number. A file of an older one is migrated in one
// transaction after a copy of the file was put beside it. A newer major is refused ([ErrNewerSchema]). A newer
// minor is accepted: a minor may only add optional fields and buckets which an older reader can ignore safely, with names that don't
// differ from others by case only. Fields this version doesn't know survive its updates of the record, at any depth, as long as the object
// that holds them does (a disk that is removed takes its unknown fields along).
//
// # Concurrency
//
// All methods of [Store] may be called concurrently: readers see the last committed state and never wait, writers follow each other. They
// take no context because a commit that has begun can't be taken back; what they wait for is other writers and the disk. Inside a
// [Store.Do] or [Store.Read] use the given [Tx] only: calling the store again from there can deadlock. Values returned are copies that belong to
// the caller.
package state
