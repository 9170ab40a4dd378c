// Package recordfile keeps small JSON values in a bbolt file of one kind, with checksums and a versioned schema. It is what the arbiters that keep
// their own records have in common.
//
// A file appears whole or not at all, is read entirely before it can be written to, and is never repaired. The caller's transactions
// are bbolt's: what Update returned nil for is synced.
package recordfile

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// Schema of the files. A newer one is refused; there is no older one.
const Schema = 1

// Errors of Open.
var (
	// ErrCorrupt is returned for a file that isn't what this package wrote. It was not changed. Get returns it too.
	ErrCorrupt = errors.New("record file damaged")

	// ErrNewerSchema is returned for a file that a newer version wrote.
	ErrNewerSchema = errors.New("record file written by a newer version")

	// ErrLocked is returned while another process has the file open.
	ErrLocked = errors.New("record file in use")
)

// Buckets of the file. Records is the caller's, for values written with [Put].
var (
	bucketMeta = []byte("meta")
	keyMeta    = []byte("file")
	Records    = []byte("records")
)

// Meta says what a file is.
type Meta struct {
	Schema   int       `json:"schema"`
	Kind     string    `json:"kind"`
	Instance string    `json:"instance"`
	Created  time.Time `json:"created"`
}

// Open opens a bbolt file of the given kind, making it if it isn't there, and checks all of it before it can be written to.
func Open(path, kind string, check func(key, raw []byte) error) (*bolt.DB, Meta, error) {
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		if err := createFile(path, kind); err != nil {
			return nil, Meta{}, err
		}
	}
	if fi, err := os.Stat(path); err != nil {
		return nil, Meta{}, err
	} else if fi.Size() == 0 {
		return nil, Meta{}, fmt.Errorf("%w: %s is empty", ErrCorrupt, path) // bbolt would make a new one of it
	}
	ro, err := openBolt(path, true)
	if err != nil {
		return nil, Meta{}, err
	}
	m, err := inspect(ro, kind, check)
	if cerr := ro.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return nil, Meta{}, fmt.Errorf("%s: %w", path, err)
	}
	db, err := openBolt(path, false)
	return db, m, err
}

func openBolt(path string, readOnly bool) (db *bolt.DB, err error) {
	var file *os.File
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil { // bbolt panics or faults on some damaged files
			if file != nil {
				_ = file.Close()
			}
			db, err = nil, fmt.Errorf("%w: %s: %v", ErrCorrupt, path, r)
		}
	}()
	db, err = bolt.Open(path, 0o600, &bolt.Options{
		Timeout: time.Second, ReadOnly: readOnly, PreLoadFreelist: true, FreelistType: bolt.FreelistMapType, NoStatistics: true,
		OpenFile: func(name string, flag int, mode os.FileMode) (f *os.File, err error) {
			file, err = os.OpenFile(name, flag&^os.O_CREATE, mode)
			return file, err
		},
	})
	switch {
	case err == nil:
		return db, nil
	case errors.Is(err, bolterrors.ErrTimeout):
		return nil, fmt.Errorf("%w: %s", ErrLocked, path)
	case errors.Is(err, bolterrors.ErrInvalid), errors.Is(err, bolterrors.ErrChecksum), errors.Is(err, bolterrors.ErrVersionMismatch):
		return nil, fmt.Errorf("%w: %s: %w", ErrCorrupt, path, err)
	}
	return nil, err
}

// createFile makes the file under another name and links it into place, so that there never is half of one.
func createFile(path, kind string) error {
	dir, base := filepath.Split(path)
	tmp, err := os.CreateTemp(dir, "."+base+".new-*")
	if err != nil {
		return err
	}
	_ = tmp.Close()
	defer func() { _ = os.Remove(tmp.Name()) }()
	db, err := openBolt(tmp.Name(), false)
	if err != nil {
		return err
	}
	err = db.Update(func(tx *bolt.Tx) error {
		b, err := tx.CreateBucket(Records)
		if err != nil {
			return err
		}
		// What is freed again below lets small changes succeed on a disk that has become full.
		if err := b.Put([]byte("reserve"), make([]byte, 256<<10)); err != nil {
			return err
		}
		if b, err = tx.CreateBucket(bucketMeta); err != nil {
			return err
		}
		return Put(b, keyMeta, Meta{Schema: Schema, Kind: kind, Instance: rand.Text(), Created: time.Now().UTC().Round(0)})
	})
	if err == nil {
		err = db.Update(func(tx *bolt.Tx) error { return tx.Bucket(Records).Delete([]byte("reserve")) })
	}
	if cerr := db.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	if err := os.Link(tmp.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	d, err := os.Open(filepath.Clean(dir + "."))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func inspect(db *bolt.DB, kind string, check func(key, raw []byte) error) (m Meta, err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %v", ErrCorrupt, r)
		}
	}()
	return m, db.View(func(tx *bolt.Tx) error {
		if fi, err := os.Stat(db.Path()); err != nil {
			return err
		} else if fi.Size() < tx.Size() {
			return fmt.Errorf("%w: %d bytes long instead of %d", ErrCorrupt, fi.Size(), tx.Size())
		}
		b := tx.Bucket(bucketMeta)
		if b == nil || tx.Bucket(Records) == nil {
			return fmt.Errorf("%w: a bbolt file, but not ours", ErrCorrupt)
		}
		if found, err := Get(b, keyMeta, &m); err != nil {
			return err
		} else if !found {
			return fmt.Errorf("%w: it doesn't say what it is", ErrCorrupt)
		}
		if m.Schema > Schema {
			return fmt.Errorf("%w: schema %d, this version reads %d", ErrNewerSchema, m.Schema, Schema)
		}
		if m.Schema != Schema || m.Instance == "" || m.Kind != kind {
			return fmt.Errorf("%w: it is a %q of schema %d, not a %q", ErrCorrupt, m.Kind, m.Schema, kind)
		}
		// Before bbolt's own check, which works in a goroutine where a fault can't be caught.
		if err := tx.Bucket(Records).ForEach(check); err != nil {
			return err
		}
		var bad error
		for e := range tx.Check() {
			if bad == nil {
				bad = fmt.Errorf("%w: %w", ErrCorrupt, e)
			}
		}
		return bad
	})
}

// A value is eight hexadecimal digits of CRC-32C over key and JSON, a blank, and the JSON. bbolt protects its meta pages only, and a flipped
// bit in a generation must not be read as another generation.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func sum(key, value []byte) string {
	h := crc32.New(castagnoli)
	_, _ = fmt.Fprintf(h, "%s\x00%s", key, value)
	return fmt.Sprintf("%08x ", h.Sum32())
}

// Put encodes a value with its checksum.
func Put(b *bolt.Bucket, key []byte, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return b.Put(key, append([]byte(sum(key, raw)), raw...))
}

// Get decodes a value, if there is one.
func Get(b *bolt.Bucket, key []byte, v any) (found bool, err error) {
	raw := b.Get(key)
	if raw == nil {
		return false, nil
	}
	return true, Decode(key, raw, v)
}

// Decode is Get for a value at hand.
func Decode(key, raw []byte, v any) error {
	const n = 9
	if len(raw) < n || !strings.HasPrefix(string(raw), sum(key, raw[n:])) {
		return fmt.Errorf("%w: checksum of %q", ErrCorrupt, key)
	}
	if err := json.Unmarshal(raw[n:], v); err != nil {
		return fmt.Errorf("%w: %q: %w", ErrCorrupt, key, err)
	}
	return nil
}
