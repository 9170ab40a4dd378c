package state

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"
)

func checkFolder(dir string) error {
	fi, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: %s", ErrNoFolder, dir)
	case isDenied(err):
		return fmt.Errorf("%w: %w", ErrNotWritable, err)
	case err != nil:
		return err
	case !fi.IsDir():
		return fmt.Errorf("%w: %s is no folder", ErrNoFolder, dir)
	}
	// Also an existing file needs a writable folder: for the copy before a migration.
	if err := unix.Access(dir, unix.W_OK|unix.X_OK); err != nil {
		return fmt.Errorf("%w: folder %s: %w", ErrNotWritable, dir, err)
	}
	return nil
}

// createIfMissing makes the file complete under another name and links it into place, so that there never is a half-made one.
func (s *Store) createIfMissing(sch schema) error {
	if _, err := os.Lstat(s.path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	dir, base := filepath.Split(s.path)
	tmp, err := os.CreateTemp(dir, newPrefix(base)+"*")
	if err != nil {
		return writeError(err)
	}
	defer func() { _ = os.Remove(tmp.Name()) }()
	_ = tmp.Close()
	db, err := openBolt(tmp.Name(), s.opt.LockTimeout, false)
	if err != nil {
		return writeError(err)
	}
	fresh := &Store{db: db, path: s.path, opt: s.opt}
	err = fresh.Do(func(tx *Tx) error { return tx.initialize(sch) })
	if cerr := db.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return writeError(err)
	}
	// Link, not rename: if another process was faster its file stays, and ours goes.
	if err := os.Link(tmp.Name(), s.path); err != nil {
		if _, serr := os.Lstat(s.path); serr == nil {
			return nil
		}
		return writeError(err)
	}
	return syncFolder(dir)
}

func newPrefix(base string) string { return "." + base + ".new-" }

// removeLeftovers removes what a creation or a copy left that was killed. It is called with the file itself locked: whoever is just making another
// one can't succeed any more.
func removeLeftovers(path string) {
	dir, base := filepath.Split(path)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), newPrefix(base)) {
			_ = os.Remove(filepath.Join(dir, e.Name()))
		}
	}
}

func syncFolder(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	if cerr := d.Close(); err == nil {
		err = cerr
	}
	return err
}

func writeError(err error) error {
	switch {
	case errors.Is(err, ErrFull), errors.Is(err, ErrLocked):
		return err
	case isFull(err):
		return fmt.Errorf("%w: %w", ErrFull, err)
	case isDenied(err):
		return fmt.Errorf("%w: %w", ErrNotWritable, err)
	}
	return err
}

// openBolt opens a file that exists. Read-only it looks at no more than the meta pages, so that the rest can be checked before bbolt trusts it.
// Should bbolt panic all the same, it would keep the lock: hence the hold on its file.
func openBolt(path string, lock time.Duration, readOnly bool) (db *bolt.DB, err error) {
	var file *os.File
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			if file != nil {
				// The memory map outlives this and would keep the lock.
				_ = unix.Flock(int(file.Fd()), unix.LOCK_UN)
				_ = file.Close()
			}
			db, err = nil, &CorruptError{Path: path, Detail: fmt.Errorf("%v", r)}
		}
	}()
	db, err = bolt.Open(path, 0o600, &bolt.Options{
		Timeout:         lock,
		ReadOnly:        readOnly,
		PreLoadFreelist: !readOnly,
		FreelistType:    bolt.FreelistMapType,
		NoStatistics:    true,
		OpenFile: func(name string, flag int, mode os.FileMode) (f *os.File, err error) {
			// Without O_CREATE, which would make a file whose name went away an empty one.
			file, err = os.OpenFile(name, flag&^os.O_CREATE, mode)
			return file, err
		},
	})
	switch {
	case err == nil:
		return db, nil
	case errors.Is(err, bolterrors.ErrTimeout):
		return nil, lockedBy(path)
	case isDenied(err):
		return nil, fmt.Errorf("%w: %w", ErrNotWritable, err)
	case isFull(err), errors.Is(err, syscall.EIO), errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENOMEM), errors.Is(err, fs.ErrNotExist):
		return nil, writeError(err)
	default:
		return nil, &CorruptError{Path: path, Detail: err}
	}
}

// lockedBy finds the holder of the file's lock in /proc/locks. From inside another PID namespace it isn't to be seen.
func lockedBy(path string) error {
	e := &LockedError{Path: path}
	fi, err := os.Stat(path)
	if err != nil {
		return e
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return e
	}
	id := fmt.Sprintf("%02x:%02x:%d", unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino)
	f, err := os.Open("/proc/locks")
	if err != nil {
		return e
	}
	defer func() { _ = f.Close() }()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		// 1: FLOCK  ADVISORY  WRITE 4711 fe:01:1234 0 EOF
		w := strings.Fields(sc.Text())
		if len(w) < 6 || w[1] != "FLOCK" || w[5] != id {
			continue
		}
		if pid, err := strconv.Atoi(w[4]); err == nil && pid > 0 {
			e.PID = pid
			if comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); err == nil {
				e.Name = strings.TrimSpace(string(comm))
			}
		}
		break
	}
	return e
}
