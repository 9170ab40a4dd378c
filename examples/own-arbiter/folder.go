package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coloctl/coloctl/colo/arbiter"
)

// folder is an arbiter that keeps its records as files in a folder which both nodes can reach. A file lock makes one claim follow the other,
// so the file system must have locks that hold between its machines (NFS 4, OCFS2, GFS2), and it must not be on either of the two nodes.
type folder struct {
	dir, node string
}

// lockPoll is how often a lock is tried that somebody else holds: file locks can't be waited for with a context.
const lockPoll = 5 * time.Millisecond

// Get returns the stored record.
func (f folder) Get(ctx context.Context, vm string) (rec arbiter.Record, err error) {
	err = f.locked(ctx, func() error {
		have, err := f.read(vm)
		if err == nil && have == nil {
			err = fmt.Errorf("%w: %s", arbiter.ErrNoRecord, vm)
		}
		if err == nil {
			rec = *have
		}
		return err
	})
	return rec, err
}

// Advance is the vote. All that is to be decided is in [arbiter.Decide]; an own arbiter only has to make reading, deciding and storing one
// step, and to answer when the record is durable.
func (f folder) Advance(ctx context.Context, next arbiter.Record) (rec arbiter.Record, err error) {
	if next.By != f.node {
		return rec, fmt.Errorf("%w: claim by %q sent by node %q", arbiter.ErrInvalid, next.By, f.node)
	}
	err = f.locked(ctx, func() error {
		have, err := f.read(next.VM)
		if err != nil {
			return err
		}
		stored, changed, err := arbiter.Decide(have, next)
		if err != nil {
			return err
		}
		rec = stored
		if !changed {
			return nil
		}
		return f.write(stored)
	})
	if err != nil {
		return arbiter.Record{}, err
	}
	return rec, nil
}

// Forget removes a record of just this generation.
func (f folder) Forget(ctx context.Context, vm string, generation uint64) error {
	return f.locked(ctx, func() error {
		have, err := f.read(vm)
		switch {
		case err != nil || have == nil:
			return err
		case have.Generation != generation:
			return fmt.Errorf("%w: %s is at %d, not %d", arbiter.ErrConflict, vm, have.Generation, generation)
		}
		if err := os.Remove(f.path(vm)); err != nil {
			return unreachable(err)
		}
		return f.sync()
	})
}

// locked runs do while nobody else does.
func (f folder) locked(ctx context.Context, do func() error) error {
	lock, err := os.OpenFile(filepath.Join(f.dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return unreachable(err)
	}
	defer lock.Close() // and with it the lock
	tick := time.NewTicker(lockPoll)
	defer tick.Stop()
	for {
		if err := ctx.Err(); err != nil {
			return unreachable(err)
		}
		err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return do()
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return unreachable(err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

// path is that of a VM's record. VMs are named by ids, which may hold anything.
func (f folder) path(vm string) string {
	return filepath.Join(f.dir, "vm-"+url.PathEscape(vm)+".json")
}

// read returns nil for a VM without a record.
func (f folder) read(vm string) (*arbiter.Record, error) {
	text, err := os.ReadFile(f.path(vm))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var rec arbiter.Record
	if err == nil {
		err = json.Unmarshal(text, &rec)
	}
	if err != nil {
		return nil, unreachable(err)
	}
	return &rec, nil
}

// write replaces the record as a whole: a crash leaves the old one or the new one.
func (f folder) write(rec arbiter.Record) error {
	text, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	file, err := os.CreateTemp(f.dir, "new-")
	if err != nil {
		return unreachable(err)
	}
	_, err = file.Write(text)
	err = errors.Join(err, file.Sync(), file.Close())
	if err == nil {
		err = os.Rename(file.Name(), f.path(rec.VM))
	}
	if err != nil {
		return unreachable(errors.Join(err, os.Remove(file.Name())))
	}
	return f.sync()
}

// sync makes what was renamed or removed durable.
func (f folder) sync() error {
	dir, err := os.Open(f.dir)
	if err == nil {
		err = errors.Join(dir.Sync(), dir.Close())
	}
	if err != nil {
		return unreachable(err)
	}
	return nil
}

// unreachable is how a claimer learns that it is not known whether its claim was stored: it holds and asks again.
func unreachable(err error) error { return fmt.Errorf("%w: %w", arbiter.ErrUnreachable, err) }
