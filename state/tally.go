package state

import (
	"hash/crc32"

	bolt "go.etcd.io/bbolt"
)

// The tally accounts for all values of the file: how many there are, and the sum of their checksums. Each commit that changes a value changes the tally in the
// same transaction. A page that lost its elements without breaking bbolt's structure is found by it: values that aren't there have no checksum to fail.
type tally struct {
	Values uint64 `json:"values"`
	Sum    uint64 `json:"sum"`
}

const keyTally = "tally"

func (t *tally) add(raw []byte) {
	t.Values++
	t.Sum += uint64(crc32.Checksum(raw, castagnoli)) + 1
}

func (t *tally) remove(raw []byte) {
	t.Values--
	t.Sum -= uint64(crc32.Checksum(raw, castagnoli)) + 1
}

// account notes that a value is replaced; nil means that there is none.
func (tx *Tx) account(old, next []byte) {
	if old != nil {
		tx.delta.remove(old)
	}
	if next != nil {
		tx.delta.add(next)
	}
	tx.dirty = true
}

// settle writes the tally before the commit.
func (tx *Tx) settle() error {
	var t tally
	if tx.has(bucketMeta, keyTally) {
		if _, err := tx.get(bucketMeta, keyTally, &t); err != nil {
			return err
		}
	}
	t.Values += tx.delta.Values // both wrap around, as the change may be negative
	t.Sum += tx.delta.Sum
	b, err := tx.makeBucket(bucketMeta)
	if err != nil {
		return err
	}
	return b.Put([]byte(keyTally), seal(bucketMeta, keyTally, mustJSON(t)))
}

// checkTally compares what is there with what should be.
func (tx *Tx) checkTally() error {
	var want, got tally
	if _, err := tx.get(bucketMeta, keyTally, &want); err != nil {
		return tx.s.damaged("tally: %w", err)
	}
	var walk func(name string, b *bolt.Bucket) error
	walk = func(name string, b *bolt.Bucket) error {
		return b.ForEach(func(k, raw []byte) error {
			switch {
			case raw == nil:
				return walk("", b.Bucket(k))
			case name == bucketMeta && string(k) == keyTally:
			default:
				got.add(raw)
			}
			return nil
		})
	}
	if err := tx.tx.ForEach(func(name []byte, b *bolt.Bucket) error { return walk(string(name), b) }); err != nil {
		return err
	}
	if got != want {
		return tx.s.damaged("%d values instead of %d, or others than were written", got.Values, want.Values)
	}
	return nil
}
