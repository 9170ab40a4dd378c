package state

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// Options of Open. The zero value is usable.
type Options struct {
	// Node is the node's name. It is written into a new file and compared with an old one's. Empty: not compared.
	Node string
	// LockTimeout is how long to wait for another process to let go of the file. Default: 1 s.
	LockTimeout time.Duration
	// History is how many entries are kept for each VM and for the node. Default: 1000.
	History int
	// Ports is the node's range. Default: DefaultPorts.
	Ports PortRange
}

func (o *Options) withDefaults() (Options, error) {
	var out Options
	if o != nil {
		out = *o
	}
	if out.LockTimeout <= 0 {
		out.LockTimeout = time.Second
	}
	if out.History <= 0 {
		out.History = 1000
	}
	if out.Ports == (PortRange{}) {
		out.Ports = DefaultPorts
	}
	return out, out.Ports.validate()
}

// Store is an open state file.
type Store struct {
	db   *bolt.DB
	path string
	opt  Options
}

// Open opens the file, making it if it isn't there (never its folder), checks all of it, and migrates it if an older version
// wrote it. All errors but those about the options are [*OpenError]. The file stays locked until Close or the end of the process.
func Open(path string, o *Options) (*Store, error) {
	opt, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	return open(path, opt, current)
}

func open(path string, opt Options, sch schema) (*Store, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, &OpenError{Path: path, Err: err}
	}
	s := &Store{path: abs, opt: opt}
	if err := s.open(sch); err != nil {
		if s.db != nil {
			_ = s.db.Close()
		}
		var oe *OpenError
		if !errors.As(err, &oe) {
			err = &OpenError{Path: abs, Err: err, Hint: hint(err)}
		}
		return nil, err
	}
	return s, nil
}

func (s *Store) open(sch schema) error {
	if err := checkFolder(filepath.Dir(s.path)); err != nil {
		return err
	}
	if err := s.createIfMissing(sch); err != nil {
		return err
	}
	found, err := s.inspect(sch)
	if err != nil {
		return err
	}
	// Only now, as a file that is damaged or from the future must not even be opened for writing.
	s.db, err = openBolt(s.path, s.opt.LockTimeout, false)
	if err != nil {
		return err
	}
	removeLeftovers(s.path)
	if err := s.migrate(found, sch); err != nil {
		return err
	}
	return s.checkNode()
}

// Close waits for running transactions and closes the file. A second call does nothing.
func (s *Store) Close() error { return s.db.Close() }

// Path returns the file's absolute path.
func (s *Store) Path() string { return s.path }

// Tx is one transaction. It is valid inside the function it was given to, in that goroutine only.
type Tx struct {
	s     *Store
	tx    *bolt.Tx
	dirty bool
	delta tally // what changed, for the tally
}

// Do runs do in a transaction that can write. If do returns nil all its changes are durable when Do returns; if it returns an error or panics there is
// none. If do changed nothing, nothing is written.
func (s *Store) Do(do func(*Tx) error) error {
	return s.guard(func() error {
		btx, err := s.db.Begin(true)
		if err != nil {
			return err
		}
		defer func() { _ = btx.Rollback() }() // no effect after the commit
		tx := &Tx{s: s, tx: btx}
		if err := do(tx); err != nil || !tx.dirty {
			return err
		}
		if err := tx.settle(); err != nil {
			return err
		}
		return btx.Commit()
	})
}

// Read runs do in a transaction that sees one moment of the store and can't write ([ErrReadOnly]).
func (s *Store) Read(do func(*Tx) error) error {
	return s.guard(func() error {
		btx, err := s.db.Begin(false)
		if err != nil {
			return err
		}
		defer func() { _ = btx.Rollback() }()
		return do(&Tx{s: s, tx: btx})
	})
}

func read[T any](s *Store, do func(*Tx) (T, error)) (out T, err error) {
	err = s.Read(func(tx *Tx) error { out, err = do(tx); return err })
	return out, err
}

// guard turns bbolt's errors into ours. The file is mapped into memory, so a disk that can't be read shows as a fault
// of this goroutine; that becomes an error instead of the end of the process.
func (s *Store) guard(do func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		r := recover()
		if r == nil {
			return
		}
		fault, ok := r.(interface {
			error
			Addr() uintptr
		})
		if !ok {
			panic(r)
		}
		err = &CorruptError{Path: s.path, Detail: fmt.Errorf("unreadable: %w", fault)}
	}()
	return translate(do())
}

func translate(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, bolterrors.ErrDatabaseNotOpen):
		return ErrClosed
	case errors.Is(err, bolterrors.ErrTxNotWritable), errors.Is(err, bolterrors.ErrDatabaseReadOnly):
		return ErrReadOnly
	case isFull(err):
		return fmt.Errorf("%w: %w", ErrFull, err)
	}
	return err
}

func isFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, syscall.EFBIG) ||
		errors.Is(err, bolterrors.ErrMaxSizeReached)
}

func isDenied(err error) bool {
	return errors.Is(err, os.ErrPermission) || errors.Is(err, syscall.EROFS)
}

func hint(err error) string {
	switch {
	case errors.Is(err, ErrNoFolder):
		return "mount it or make it, owned by the daemon's user, mode 0700"
	case errors.Is(err, ErrLocked):
		return "one daemon per state file; stop the other one, or wait until it has ended"
	case errors.Is(err, ErrCorrupt):
		return "it was not changed; restore a copy, or move it away and let the arbiter or a person decide which node's disks are current"
	case errors.Is(err, ErrNewerSchema):
		return "install the newer version again, or restore the copy that it made beside the file"
	case errors.Is(err, ErrOtherNode):
		return "a state file must never be copied to another node"
	case errors.Is(err, ErrFull):
		return "free some space"
	default:
		return ""
	}
}
