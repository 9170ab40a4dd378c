package state

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	bolt "go.etcd.io/bbolt"
)

// Version of the schema.
type Version struct {
	Major int `json:"major"`
	Minor int `json:"minor"`
}

func (v Version) String() string { return fmt.Sprintf("%d.%d", v.Major, v.Minor) }

func (v Version) less(o Version) bool {
	return v.Major < o.Major || (v.Major == o.Major && v.Minor < o.Minor)
}

// migration leads from one version to the next. It sees the buckets as they are on disk.
type migration struct {
	from, to Version
	do       func(tx *Tx) error
}

// schema is what a version of this package reads. Tests have others.
type schema struct {
	version    Version
	migrations []migration // in order, without gaps, the last one leading to version
	// verify decodes a value of this version; for buckets it doesn't know it returns nil.
	verify func(bucket string, value []byte) error
}

var current = schema{version: Version{Major: 1, Minor: 0}, verify: verifyValue}

// keySchema holds a Version. Its place, its envelope and its two fields are the same in all versions for ever, as that is what an
// old version looks at in a file from the future.
const keySchema = "schema"

func verifyValue(bucket string, value []byte) error {
	var v any
	switch parent, _, nested := cutBucket(bucket); {
	case bucket == bucketVMs:
		v = &VM{}
	case bucket == bucketIntents, bucket == bucketEnded:
		v = &Intent{}
	case parent == bucketHistory && nested:
		v = &Entry{}
	case bucket == bucketPorts:
		v = &portRecord{}
	default:
		return nil // meta is looked at key by key
	}
	if err := json.Unmarshal(value, v); err != nil {
		return err
	}
	if vm, ok := v.(*VM); ok {
		return vm.validate()
	}
	return nil
}

// initialize fills a new file.
func (tx *Tx) initialize(sch schema) error {
	for _, b := range []string{bucketVMs, bucketIntents, bucketEnded, bucketHistory, bucketPorts} {
		if _, err := tx.makeBucket(b); err != nil {
			return err
		}
	}
	if err := tx.put(bucketMeta, keyNode, &nodeRecord{Name: tx.s.opt.Node, ID: newID(), Created: now()}, nil); err != nil {
		return err
	}
	return tx.put(bucketMeta, keySchema, sch.version, nil)
}

// migrate brings the file to the schema's version, after copying it. All steps are one transaction: a file is never between
// two versions.
func (s *Store) migrate(found Version, sch schema) error {
	if !found.less(sch.version) {
		return nil
	}
	if err := s.copyBeside(found); err != nil {
		return err
	}
	at := found
	err := s.Do(func(tx *Tx) error {
		for _, m := range sch.migrations {
			if m.from != at {
				continue
			}
			if err := m.do(tx); err != nil {
				return fmt.Errorf("migration from schema %s to %s: %w", m.from, m.to, err)
			}
			at = m.to
		}
		if at != sch.version {
			return fmt.Errorf("%w: no migration from schema %s to %s", ErrInvalid, at, sch.version)
		}
		return tx.put(bucketMeta, keySchema, at, nil)
	})
	if err != nil {
		return err
	}
	// What a migration wrote must be what the new version reads.
	return s.Read(func(tx *Tx) error { return tx.verifyAll(sch) })
}

// BackupPath is where the copy of a file of an older schema is put before its migration.
func BackupPath(path string, v Version) string { return path + ".schema-" + v.String() }

func (s *Store) copyBeside(v Version) error {
	dir, base := filepath.Split(s.path)
	tmp, err := os.CreateTemp(dir, newPrefix(base)+"*")
	if err != nil {
		return writeError(err)
	}
	defer func() { _ = os.Remove(tmp.Name()) }()
	err = s.db.View(func(tx *bolt.Tx) error {
		_, err := tx.WriteTo(tmp)
		return err
	})
	if err == nil {
		err = tmp.Sync()
	}
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp.Name(), BackupPath(s.path, v))
	}
	if err != nil {
		return fmt.Errorf("copy before the migration: %w", writeError(err))
	}
	return syncFolder(dir)
}
