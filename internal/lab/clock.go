package lab

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// The wall clock can't be set for a part of a machine, and Go's programs read it without a library in between. So a scenario that needs
// another wall clock runs a colod that is built from the same source, but with a package time whose Now adds what a file says. Timers, and
// what is measured between two times, go by the monotonic clock as ever. Unix adds it too: what QEMU and the kernel tell of is by the machine's clock, which the
// daemon takes for the same as its own.

// clockVariable names the file with the seconds that are added, 8 bytes, little endian.
const clockVariable = "COLOCTL_LAB_CLOCK"

const clockSource = `package time

import (
	"sync/atomic"
	"syscall"
	"unsafe"
)

var wallShift = func() *int64 {
	path, ok := syscall.Getenv("` + clockVariable + `")
	if !ok {
		return new(int64)
	}
	fd, err := syscall.Open(path, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		panic("` + clockVariable + `: " + err.Error())
	}
	page, err := syscall.Mmap(fd, 0, 8, syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		panic("` + clockVariable + `: " + err.Error())
	}
	return (*int64)(unsafe.Pointer(&page[0]))
}()

func shifted() int64 { return atomic.LoadInt64(wallShift) }
`

// clockHooks are where Now and Unix get their time, in Go's source; the shift is added behind the first line of each.
var clockHooks = []string{"\tsec, nsec, mono := runtimeNow()\n\tif mono == 0 {", "func Unix(sec int64, nsec int64) Time {\n"}

// overlay writes what go build -overlay needs to dir and returns the path of its file.
func overlay(ctx context.Context, dir string) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
	if err != nil {
		return "", err
	}
	folder := filepath.Join(strings.TrimSpace(string(out)), "src", "time")
	text, err := os.ReadFile(filepath.Join(folder, "time.go"))
	if err != nil {
		return "", err
	}
	changed := string(text)
	for _, hook := range clockHooks {
		if strings.Count(changed, hook) != 1 {
			return "", errors.New("this version of Go reads the clock in another way than the lab knows")
		}
		changed = strings.Replace(changed, hook, strings.Replace(hook, "\n", "\n\tsec += shifted()\n", 1), 1)
	}
	replace := map[string]string{filepath.Join(folder, "time.go"): filepath.Join(dir, "time.go"), filepath.Join(folder, "labclock.go"): filepath.Join(dir, "labclock.go")}
	list, err := json.Marshal(map[string]any{"Replace": replace})
	path := filepath.Join(dir, "overlay.json")
	return path, errors.Join(err, os.WriteFile(filepath.Join(dir, "time.go"), []byte(changed), 0o600),
		os.WriteFile(filepath.Join(dir, "labclock.go"), []byte(clockSource), 0o600), os.WriteFile(path, list, 0o600))
}

// SetClock makes the daemon's wall clock differ from the machine's by d, whole seconds. The lab's assets must have [Assets.Clock].
func (n *Node) SetClock(d time.Duration) error {
	f, err := os.OpenFile(n.path("clock"), os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("%s: its daemon has no clock of its own: %w", n.Name, err)
	}
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], uint64(int64(d/time.Second)))
	_, err = f.WriteAt(b[:], 0)
	n.lab.Journal.shift(n.Name, d.Truncate(time.Second))
	return errors.Join(err, f.Close())
}

// clockEnv makes the file for the node's clock, if it is to have one, and returns what tells the daemon of it.
func (n *Node) clockEnv() ([]string, error) {
	if !n.lab.opts.Assets.Clock {
		return nil, nil
	}
	path := n.path("clock")
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		if err := os.WriteFile(path, make([]byte, 8), 0o600); err != nil {
			return nil, err
		}
	}
	return []string{clockVariable + "=" + path}, nil
}
