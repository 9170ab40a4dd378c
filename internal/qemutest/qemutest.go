// Package qemutest finds what tests with a real QEMU need: programs and files that make sets in the environment. In CI all of it must be there, and a test
// that finds less fails; elsewhere it is skipped.
//
// It imports nothing of the project, so that every package's tests can use it.
package qemutest

import (
	"os"
	"testing"
)

// Missing ends a test for what this machine lacks.
func Missing(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

// Need does so for an error; nil is none.
func Need(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		Missing(t, "%v", err)
	}
}

func setting(t testing.TB, name string) string {
	t.Helper()
	value := os.Getenv(name)
	if value == "" {
		Missing(t, "%s is not set: run the tests with make", name)
	}
	return value
}

// QEMU is the program that runs machines.
func QEMU(t testing.TB) string { t.Helper(); return setting(t, "COLOCTL_QEMU") }

// Img is qemu-img.
func Img(t testing.TB) string { t.Helper(); return setting(t, "COLOCTL_QEMU_IMG") }

// Kernel is a guest's kernel.
func Kernel(t testing.TB) string { t.Helper(); return setting(t, "COLOCTL_KERNEL") }

// Modules is the folder with that kernel's modules.
func Modules(t testing.TB) string { t.Helper(); return setting(t, "COLOCTL_MODULES") }

// Tools is all of it.
type Tools struct{ QEMU, Img, Kernel, Modules string }

// Find returns all of it.
func Find(t testing.TB) Tools {
	t.Helper()
	return Tools{QEMU(t), Img(t), Kernel(t), Modules(t)}
}
