package colo

import (
	"errors"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// fullDisk is a store that takes nothing while it is full.
type fullDisk struct {
	Records
	mu   sync.Mutex
	full bool
}

func (d *fullDisk) set(full bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.full = full
}

func (d *fullDisk) Write(do func(RecordsTx) error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.full {
		return errors.New("no space left on device")
	}
	return do(nil)
}

// TestLedgerOwes: what could not be written is told, and written as soon as that is possible, in its order. What can never be written doesn't hold the rest up.
func TestLedgerOwes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := &fullDisk{}
		l := newLedger(disk, slog.New(slog.DiscardHandler))
		defer l.close()
		var got []int
		write := func(i int) func(RecordsTx) error {
			return func(RecordsTx) error { got = append(got, i); return nil }
		}
		l.write(write(1))
		synctest.Wait()
		if err := l.lacks(); err != nil {
			t.Errorf("a disk that works: %v", err)
		}
		disk.set(true)
		l.write(write(2))
		l.write(func(RecordsTx) error { return errors.New("no such VM") })
		l.write(write(3))
		synctest.Wait()
		if l.lacks() == nil {
			t.Error("what could not be written is not told")
		}
		if err := l.writeNow(t.Context(), write(9)); err == nil {
			t.Error("written to a full disk")
		}
		disk.set(false)
		time.Sleep(2 * owedEvery)
		synctest.Wait()
		if err := l.lacks(); err != nil {
			t.Errorf("all was written: %v", err)
		}
		if err := l.writeNow(t.Context(), write(4)); err != nil {
			t.Error(err)
		}
		if !slices.Equal(got, []int{1, 2, 3, 4}) {
			t.Errorf("written: %v", got)
		}
	})
}
