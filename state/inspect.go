package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"strings"

	bolt "go.etcd.io/bbolt"
)

// inspect reads the whole file, without being able to write it, and returns its schema version. It is small: a few hundred
// kilobytes, a few milliseconds.
//
// Invariants of a healthy file:
//
//  1. It isn't empty, and as long as its meta page says.
//  2. Every page is either reachable or free, and not both; what is in it lies inside it and in order (checkPages, and bbolt's own check).
//  3. Every value has an envelope with the right checksum for its place, and no value is missing (the tally).
//  4. meta/schema exists and its major isn't newer than ours.
//  5. If the version is ours every value can be decoded, VMs keep their rules, and no VM has two open intents.
func (s *Store) inspect(sch schema) (found Version, err error) {
	fi, err := os.Stat(s.path)
	switch {
	case isDenied(err):
		return found, fmt.Errorf("%w: %w", ErrNotWritable, err)
	case err != nil:
		return found, err
	case !fi.Mode().IsRegular():
		return found, s.damaged("not a file but %s", fi.Mode().Type())
	case fi.Size() == 0:
		return found, s.damaged("it is empty")
	}
	db, err := openBolt(s.path, s.opt.LockTimeout, true)
	if err != nil {
		return found, err
	}
	defer func() {
		if cerr := db.Close(); err == nil {
			err = cerr
		}
	}()
	// The lock is held from here on. Not through bbolt's memory map, as that faults beyond the end of the file.
	raw, err := os.ReadFile(s.path)
	if err != nil {
		return found, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if err := checkPages(raw); err != nil {
		return found, s.damaged("%w", err)
	}
	// bbolt should have nothing to panic about any more.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = s.damaged("%v", r)
		}
	}()
	err = db.View(func(btx *bolt.Tx) error {
		tx := &Tx{s: s, tx: btx}
		if found, err = tx.version(); err != nil {
			return err
		}
		if found.Major > sch.version.Major {
			return &SchemaError{Path: s.path, Found: found, Supports: sch.version}
		}
		check := sch
		if found.Major != sch.version.Major {
			check.verify = nil
		}
		if err := tx.verifyAll(check); err != nil {
			return err
		}
		if err := tx.checkTally(); err != nil {
			return err
		}
		var bad error
		for e := range btx.Check() { // to be drained, or its goroutine stays
			if bad == nil {
				bad = e
			}
		}
		if bad != nil {
			return s.damaged("%v", bad)
		}
		return nil
	})
	return found, err
}

func (s *Store) damaged(format string, a ...any) error {
	return &CorruptError{Path: s.path, Detail: fmt.Errorf(format, a...)}
}

func (tx *Tx) version() (Version, error) {
	var v Version
	_, err := tx.get(bucketMeta, keySchema, &v)
	if errors.Is(err, ErrNotFound) {
		return v, tx.s.damaged("a bbolt file, but without our schema")
	}
	if err == nil && v.Major < 1 {
		return v, tx.s.damaged("schema version %s", v)
	}
	return v, err
}

// verifyAll checks the invariants 3 and 5.
func (tx *Tx) verifyAll(sch schema) error {
	err := tx.tx.ForEach(func(name []byte, b *bolt.Bucket) error { return tx.verifyBucket(sch, string(name), b) })
	if err != nil || sch.verify == nil {
		return err
	}
	open := map[string]uint64{}
	return each(tx, bucketIntents, func(_ string, in struct {
		ID uint64 `json:"id"`
		VM string `json:"vm"`
	}) error {
		if other, ok := open[in.VM]; ok && in.VM != "" {
			return tx.s.damaged("VM %s has two open intents, %d and %d", in.VM, other, in.ID)
		}
		open[in.VM] = in.ID
		return nil
	})
}

func (tx *Tx) verifyBucket(sch schema, path string, b *bolt.Bucket) error {
	return b.ForEach(func(k, raw []byte) error {
		if raw == nil {
			return tx.verifyBucket(sch, path+"/"+string(k), b.Bucket(k))
		}
		var any json.RawMessage
		value, err := tx.decode(path, string(k), raw, &any)
		if err != nil {
			return err
		}
		if sch.verify == nil {
			return nil
		}
		if err := sch.verify(path, value); err != nil {
			return &CorruptError{Path: tx.s.path, Bucket: path, Key: string(k), Detail: err}
		}
		return nil
	})
}

func cutBucket(path string) (parent, name string, nested bool) { return strings.Cut(path, "/") }
