package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mountKernel mounts the kernel's own file systems.
func mountKernel() error {
	for _, m := range []struct{ fstype, dir string }{
		{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"},
	} {
		if err := os.MkdirAll(m.dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.fstype, m.dir, m.fstype, 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			// EBUSY: the kernel has mounted devtmpfs itself.
			return fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	return os.MkdirAll(dataDir, 0o755)
}

// loadModules loads the modules that dir/order lists, in that order.
func loadModules(dir string) error {
	order, err := os.Open(filepath.Join(dir, "order"))
	if err != nil {
		return err
	}
	defer order.Close()
	lines := bufio.NewScanner(order)
	for lines.Scan() {
		if err := loadModule(filepath.Join(dir, lines.Text())); err != nil {
			return err
		}
	}
	return lines.Err()
}

func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("load %s: %w", filepath.Base(path), err)
	}
	// The initramfs stays in memory, which COLO copies: keep it small.
	return os.Remove(path)
}

// inputEvent is the kernel's struct input_event.
type inputEvent struct {
	Time  unix.Timeval
	Type  uint16
	Code  uint16
	Value int32
}

const (
	evKey    = 1
	keyPower = 116
)

// watchPowerButton calls pressed when the power button is pressed, for as long
// as the machine runs: its readers end with it.
func watchPowerButton(pressed func()) error {
	devices, err := filepath.Glob("/dev/input/event*")
	if err != nil {
		return err
	}
	for _, path := range devices {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		go func() {
			defer f.Close()
			buf := make([]byte, unsafe.Sizeof(inputEvent{}))
			at := unsafe.Offsetof(inputEvent{}.Type)
			for {
				if _, err := f.Read(buf); err != nil {
					return
				}
				kind, code := binary.NativeEndian.Uint16(buf[at:]), binary.NativeEndian.Uint16(buf[at+2:])
				if kind == evKey && code == keyPower && buf[at+4] == 1 {
					pressed()
				}
			}
		}()
	}
	return nil
}
