package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A Folder is where a lab keeps its disks, logs and control socket. Its file "lock" is locked for as long as any process of the lab lives,
// so a lock that can be taken means that the folder is left over from a crash.
type Folder struct {
	Path string
	lock *os.File
}

const (
	// LogName is the log of a lab that stays, in its folder.
	LogName   = "lab.log"
	lockName  = "lock"
	keptName  = "kept" // the lock of a folder that a person wanted kept
	runPrefix = "coloctl-lab-"
	// A crash between making a folder and locking it leaves one without a lock.
	unlockedAge = time.Hour
)

var labName = regexp.MustCompile(`^[a-z][a-z0-9-]{0,31}$`)

// StateRoot returns the folder of the labs that have a name.
func StateRoot() (string, error) {
	root := os.Getenv("XDG_STATE_HOME")
	if root == "" || !filepath.IsAbs(root) { // relative ones are invalid by the XDG rules
		home, err := os.UserHomeDir()
		if err != nil {
			return "", fmt.Errorf("folder of the labs: %w; set XDG_STATE_HOME", err)
		}
		root = filepath.Join(home, ".local", "state")
	}
	return filepath.Join(root, "coloctl", "lab"), nil
}

// MakeFolder makes and locks the folder of a lab: of a named one below [StateRoot], or, when the name is empty, a new temporary one.
// It fails with [ErrExists] if the lab is up, and replaces what a crash left.
func MakeFolder(name string) (*Folder, error) {
	if name == "" {
		path, err := os.MkdirTemp("", runPrefix)
		if err != nil {
			return nil, err
		}
		return lockFolder(path)
	}
	path, err := NamedFolder(name)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	err = os.Mkdir(path, 0o700)
	if errors.Is(err, os.ErrExist) {
		if !removeStale(path, 0) {
			return nil, fmt.Errorf("%s: %w", name, ErrExists)
		}
		err = os.Mkdir(path, 0o700)
	}
	if err != nil {
		return nil, err
	}
	return lockFolder(path)
}

// NamedFolder returns the path of a named lab's folder.
func NamedFolder(name string) (string, error) {
	if !labName.MatchString(name) {
		return "", fmt.Errorf("%q: %w", name, ErrName)
	}
	root, err := StateRoot()
	if err != nil {
		return "", err
	}
	return filepath.Join(root, name), nil
}

// lockFolder gives the file its name only once it is locked, so that nobody who finds it can take the lock of a lab that is just starting.
func lockFolder(path string) (*Folder, error) {
	lock, err := os.CreateTemp(path, "new-lock-")
	if err == nil {
		err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			err = os.Rename(lock.Name(), filepath.Join(path, lockName))
		}
		if err != nil {
			_ = lock.Close()
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), os.RemoveAll(path))
	}
	return &Folder{Path: path, lock: lock}, nil
}

// Keep makes the folder an ordinary one that no command removes.
func (f *Folder) Keep() error {
	return errors.Join(os.Rename(filepath.Join(f.Path, lockName), filepath.Join(f.Path, keptName)), f.lock.Close())
}

// Remove deletes the folder. The lab's processes must be gone.
func (f *Folder) Remove() error {
	err := os.RemoveAll(f.Path)
	return errors.Join(err, f.lock.Close())
}

// Release gives up this process's hold on the lock, not that of the lab's processes.
func (f *Folder) Release() error { return f.lock.Close() }

// inUse tells whether a lab's process lives. Without a lock file it is unknown: a lab that is starting looks like that, for a moment.
func inUse(path string) (used, known bool) {
	lock, err := os.Open(filepath.Join(path, lockName))
	if err != nil {
		return false, false
	}
	defer lock.Close()
	err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	return err != nil, true
}

// removeStale removes the folder if no lab uses it, and tells whether it did.
func removeStale(path string, unlocked time.Duration) bool {
	used, known := inUse(path)
	if used {
		return false
	}
	if !known {
		if _, err := os.Stat(filepath.Join(path, keptName)); err == nil {
			return false
		}
		info, err := os.Stat(path)
		if err != nil || time.Since(info.ModTime()) < unlocked {
			return false
		}
	}
	return os.RemoveAll(path) == nil
}

// Sweep removes the folders of labs that crashed and returns their paths.
func Sweep() []string {
	var removed []string
	try := func(path string) {
		if removeStale(path, unlockedAge) {
			removed = append(removed, path)
		}
	}
	entries, _ := os.ReadDir(os.TempDir()) // an unreadable folder holds none of ours
	for _, e := range entries {
		info, err := e.Info()
		if err == nil && e.IsDir() && strings.HasPrefix(e.Name(), runPrefix) && ownedByUs(info) {
			try(filepath.Join(os.TempDir(), e.Name()))
		}
	}
	if root, err := StateRoot(); err == nil {
		entries, _ := os.ReadDir(root)
		for _, e := range entries {
			if e.IsDir() && labName.MatchString(e.Name()) {
				try(filepath.Join(root, e.Name()))
			}
		}
	}
	return removed
}

func ownedByUs(info os.FileInfo) bool {
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(stat.Uid) == os.Geteuid()
}
