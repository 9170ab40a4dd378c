package witness

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/coloctl/coloctl/colo/arbiter"
)

// Schema of the file. A newer one is refused; there is no older one.
const Schema = 1

var (
	bucketMeta    = []byte("meta")
	bucketRecords = []byte("records")
	keyMeta       = []byte("witness")
)

type meta struct {
	Schema   int       `json:"schema"`
	Instance string    `json:"instance"`
	Created  time.Time `json:"created"`
}

// Store is a witness's file.
type Store struct {
	db       *bolt.DB
	instance string
	run      string

	mu      sync.Mutex
	stopped error
	repeats repeats
}

// Open opens the file, making it if it isn't there (never its folder), and reads all of it.
func Open(path string) (*Store, error) {
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		if err := create(path); err != nil {
			return nil, err
		}
	}
	if fi, err := os.Stat(path); err != nil {
		return nil, err
	} else if fi.Size() == 0 {
		return nil, fmt.Errorf("%w: %s is empty", ErrCorrupt, path) // bbolt would make a new one of it
	}
	db, err := openBolt(path)
	if err != nil {
		return nil, err
	}
	s := &Store{db: db, run: rand.Text()}
	if err := s.inspect(); err != nil {
		_ = db.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return s, nil
}

func openBolt(path string) (db *bolt.DB, err error) {
	var file *os.File
	defer func() {
		if r := recover(); r != nil { // bbolt panics on some damaged files
			if file != nil {
				_ = file.Close()
			}
			db, err = nil, fmt.Errorf("%w: %s: %v", ErrCorrupt, path, r)
		}
	}()
	db, err = bolt.Open(path, 0o600, &bolt.Options{
		Timeout: time.Second, PreLoadFreelist: true, FreelistType: bolt.FreelistMapType, NoStatistics: true,
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

// create makes the file under another name and links it into place, so that there never is half of one.
func create(path string) error {
	dir, base := filepath.Split(path)
	tmp, err := os.CreateTemp(dir, "."+base+".new-*")
	if err != nil {
		return err
	}
	_ = tmp.Close()
	defer func() { _ = os.Remove(tmp.Name()) }()
	db, err := openBolt(tmp.Name())
	if err != nil {
		return err
	}
	err = db.Update(func(tx *bolt.Tx) error {
		if _, err := tx.CreateBucket(bucketRecords); err != nil {
			return err
		}
		b, err := tx.CreateBucket(bucketMeta)
		if err != nil {
			return err
		}
		return put(b, keyMeta, meta{Schema: Schema, Instance: rand.Text(), Created: time.Now().UTC().Round(0)})
	})
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

func (s *Store) inspect() (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %v", ErrCorrupt, r)
		}
	}()
	return s.db.View(func(tx *bolt.Tx) error {
		var m meta
		b := tx.Bucket(bucketMeta)
		if b == nil || tx.Bucket(bucketRecords) == nil {
			return fmt.Errorf("%w: a bbolt file, but not ours", ErrCorrupt)
		}
		if found, err := get(b, keyMeta, &m); err != nil || !found {
			return fmt.Errorf("%w: no meta: %w", ErrCorrupt, err)
		}
		if m.Schema > Schema {
			return fmt.Errorf("%w: schema %d, this version reads %d", ErrNewerSchema, m.Schema, Schema)
		}
		if m.Schema != Schema || m.Instance == "" {
			return fmt.Errorf("%w: schema %d, instance %q", ErrCorrupt, m.Schema, m.Instance)
		}
		s.instance = m.Instance
		if err := tx.Bucket(bucketRecords).ForEach(func(k, raw []byte) error {
			var e entry
			return decode(k, raw, &e)
		}); err != nil {
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

// Close waits for what is under way.
func (s *Store) Close() error { return s.db.Close() }

// Instance is a random text made with the file.
func (s *Store) Instance() string { return s.instance }

// Records returns all records, in the order of the VMs' ids.
func (s *Store) Records() (out []arbiter.Record, err error) {
	err = s.view(func(tx *bolt.Tx) error {
		return tx.Bucket(bucketRecords).ForEach(func(k, raw []byte) error {
			var e entry
			if err := decode(k, raw, &e); err != nil {
				return err
			}
			if e.Record != nil {
				out = append(out, *e.Record)
			}
			return nil
		})
	})
	return out, err
}

func (s *Store) view(do func(tx *bolt.Tx) error) error {
	if err := s.usable(); err != nil {
		return err
	}
	return s.db.View(do)
}

func (s *Store) usable() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stopped
}

// stop ends all answers: after a failed sync the kernel may show data that aren't on the disk.
func (s *Store) stop(err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped == nil {
		s.stopped = fmt.Errorf("%w: %w", ErrStopped, err)
	}
	return s.stopped
}

// do carries out a request about vm by a node. gone, if not nil, says whether the caller has given up waiting; call and attempt name the
// request among its repetitions.
func (s *Store) do(vm string, req request, caller, call string, attempt int, gone func() error) (ans answer, err error) {
	if vm == "" {
		return answer{}, fmt.Errorf("%w: no VM named", arbiter.ErrInvalid)
	}
	if req.Next != nil && req.Next.VM != vm {
		return answer{}, fmt.Errorf("%w: record of %q sent for %q", arbiter.ErrInvalid, req.Next.VM, vm)
	}
	if err := s.usable(); err != nil {
		return answer{}, err
	}
	tx, err := s.db.Begin(req.Op != opGet)
	if err != nil {
		return answer{}, err
	}
	defer func() { _ = tx.Rollback() }() // no effect after the commit
	// Here all writers are in a row, so what was repeated in the meantime, or isn't waited for any more, is stopped for certain.
	if req.Op != opGet {
		if done, ok := s.repeats.begin(call, attempt); !ok {
			return answer{}, fmt.Errorf("attempt %d was repeated", attempt)
		} else if done != nil {
			return *done, s.usable()
		}
	}
	if gone != nil {
		if err := gone(); err != nil {
			return answer{}, err
		}
	}
	b := tx.Bucket(bucketRecords)
	var e entry
	if _, err := get(b, []byte(vm), &e); err != nil {
		return answer{}, s.stop(err)
	}
	ans, changed, err := e.apply(req, caller, s.instance)
	if err != nil || !changed {
		// What was read by an earlier transaction that failed to sync would be no base for an answer.
		return ans, errors.Join(err, s.usable())
	}
	if e.empty() {
		err = b.Delete([]byte(vm))
	} else {
		err = put(b, []byte(vm), e)
	}
	if err == nil {
		err = tx.Commit()
	}
	switch {
	case err == nil:
		s.repeats.end(call, ans)
		return ans, nil
	case full(err):
		return answer{}, err // it failed before anything that is in use was written
	default:
		return answer{}, s.stop(err)
	}
}

func (e *entry) empty() bool { return e.Record == nil && e.Tenure == 0 && e.Seen == nil }

func full(err error) bool {
	return slices.ContainsFunc([]error{syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG, bolterrors.ErrMaxSizeReached}, func(t error) bool { return errors.Is(err, t) })
}

// A value is eight hexadecimal digits of CRC-32C over key and JSON, a blank, and the JSON. bbolt protects its meta pages only, and a flipped
// bit in a generation must not be read as another generation.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func sum(key, value []byte) string {
	h := crc32.New(castagnoli)
	_, _ = fmt.Fprintf(h, "%s\x00%s", key, value)
	return fmt.Sprintf("%08x ", h.Sum32())
}

func put(b *bolt.Bucket, key []byte, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return b.Put(key, append([]byte(sum(key, raw)), raw...))
}

func get(b *bolt.Bucket, key []byte, v any) (found bool, err error) {
	raw := b.Get(key)
	if raw == nil {
		return false, nil
	}
	return true, decode(key, raw, v)
}

func decode(key, raw []byte, v any) error {
	const n = 9
	if len(raw) < n || !strings.HasPrefix(string(raw), sum(key, raw[n:])) {
		return fmt.Errorf("%w: checksum of %q", ErrCorrupt, key)
	}
	if err := json.Unmarshal(raw[n:], v); err != nil {
		return fmt.Errorf("%w: %q: %w", ErrCorrupt, key, err)
	}
	return nil
}
