package witness

import (
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"sync"
	"syscall"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/coloctl/coloctl/colo/arbiter"
	"github.com/coloctl/coloctl/colo/arbiter/internal/recordfile"
)

// Kinds of this package's files.
const (
	kindWitness = "witness"
	kindLedger  = "ledger"
)

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
	db, m, err := recordfile.Open(path, kindWitness, func(k, raw []byte) error {
		var e entry
		return recordfile.Decode(k, raw, &e)
	})
	if err != nil {
		return nil, err
	}
	return &Store{db: db, instance: m.Instance, run: rand.Text()}, nil
}

// Close waits for what is under way.
func (s *Store) Close() error { return s.db.Close() }

// Instance is a random text made with the file.
func (s *Store) Instance() string { return s.instance }

// Records returns all records, in the order of the VMs' ids.
func (s *Store) Records() (out []arbiter.Record, err error) {
	return out, s.each(func(_ string, e *entry) {
		if e.Record != nil {
			out = append(out, *e.Record)
		}
	})
}

// mine returns the VMs of which a node is a member.
func (s *Store) mine(node string) (out []string, err error) {
	return out, s.each(func(vm string, e *entry) {
		if e.concerns(node) {
			out = append(out, vm)
		}
	})
}

func (s *Store) each(do func(vm string, e *entry)) error {
	if err := s.usable(); err != nil {
		return err
	}
	err := s.db.View(func(tx *bolt.Tx) error {
		return tx.Bucket(recordfile.Records).ForEach(func(k, raw []byte) error {
			var e entry
			if err := recordfile.Decode(k, raw, &e); err != nil {
				return s.stop(err)
			}
			do(string(k), &e)
			return nil
		})
	})
	return errors.Join(err, s.usable())
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
	b := tx.Bucket(recordfile.Records)
	var e entry
	if _, err := recordfile.Get(b, []byte(vm), &e); err != nil {
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
		err = recordfile.Put(b, []byte(vm), e)
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
