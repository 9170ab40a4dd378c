package lab

import (
	"errors"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"testing"
)

func TestNamespaceError(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.EPERM, syscall.EACCES, syscall.ENOSPC, syscall.EUSERS, syscall.EINVAL} {
		err := namespaceError("make namespaces", &os.PathError{Op: "fork/exec", Path: "/proc/self/exe", Err: errno})
		var p *PreconditionError
		if !errors.Is(err, ErrPrecondition) || !errors.Is(err, ErrNoNamespaces) || !errors.Is(err, errno) || !errors.As(err, &p) {
			t.Errorf("%v: got %v", errno, err)
			continue
		}
		if !strings.HasSuffix(p.Remedy, ".") || !strings.Contains(err.Error(), p.Remedy) {
			t.Errorf("%v: no remedy in %q", errno, err)
		}
	}
	err := namespaceError("make namespaces", fs.ErrNotExist)
	if errors.Is(err, ErrPrecondition) || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an error of another kind: got %v", err)
	}
}

// A refusal inside the new namespaces reaches the starter with its cause.
func TestReportKeepsTheCause(t *testing.T) {
	r := report{Op: "mount /proc", Error: "operation not permitted", Errno: syscall.EPERM, Domain: "namespace"}
	if err := r.err(); !errors.Is(err, ErrNoNamespaces) || !errors.Is(err, syscall.EPERM) || !strings.Contains(err.Error(), "mount /proc") {
		t.Errorf("got %v", err)
	}
	r = report{Op: "set the lab up", Error: "no room"}
	if err := r.err(); errors.Is(err, ErrPrecondition) || err == nil || !strings.Contains(err.Error(), "no room") {
		t.Errorf("got %v", err)
	}
	if err := (report{Ready: true}).err(); err != nil {
		t.Errorf("got %v", err)
	}
}
