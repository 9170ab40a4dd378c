package daemon

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// dog is a device that bites.
type dog struct {
	mu     sync.Mutex
	took   time.Duration // forced on whoever sets the timeout
	err    error
	limit  time.Duration
	fed    time.Time
	bitten bool
	said   strings.Builder
	closed bool
}

func (d *dog) SetTimeout(t time.Duration) (time.Duration, error) {
	d.limit, d.fed = max(t, d.took), time.Now()
	return d.limit, d.err
}

func (d *dog) look() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.limit > 0 && time.Since(d.fed) >= d.limit {
		d.bitten = true
	}
	return d.bitten
}

func (d *dog) Write(b []byte) (int, error) {
	d.look()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fed = time.Now()
	d.said.Write(b)
	return len(b), nil
}

func (d *dog) Close() error {
	d.closed = true
	if strings.HasSuffix(d.said.String(), "V") {
		d.limit = 0
	}
	return nil
}

// TestHardwareWatchdog: fed while the engine lives, starved when its check hangs or fails, disarmed at a clean stop unless a primary is left alone.
func TestHardwareWatchdog(t *testing.T) {
	for _, c := range []struct {
		name       string
		healthy    func(since time.Duration) error
		hangs      bool
		unattended []string
		after      time.Duration // of the stop
		bites      bool
	}{
		{name: "well", after: time.Minute},
		{name: "well, and a primary is left alone for long", unattended: []string{"web"}, after: time.Minute, bites: true},
		{name: "well, and a primary is left alone for a moment", unattended: []string{"web"}, after: 5 * time.Second},
		{name: "sick for a moment", healthy: func(d time.Duration) error {
			if d > 20*time.Second && d < 26*time.Second {
				return errors.New("sick")
			}
			return nil
		}},
		{name: "sick", healthy: func(d time.Duration) error {
			if d > 20*time.Second {
				return errors.New("sick")
			}
			return nil
		}, bites: true},
		{name: "hanging", hangs: true, bites: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := &dog{}
				h, err := newHardware(d, 10*time.Second, slog.New(slog.DiscardHandler))
				must(t, err)
				ctx, stop := context.WithCancel(t.Context())
				began, hang := time.Now(), make(chan struct{})
				var fed sync.WaitGroup
				fed.Go(func() {
					h.feed(ctx, func() error {
						if c.hangs && time.Since(began) > 20*time.Second {
							<-hang
						}
						if c.healthy != nil {
							return c.healthy(time.Since(began))
						}
						return nil
					})
				})
				for range 60 {
					time.Sleep(time.Second)
					d.look()
				}
				if !d.bitten {
					stop()
					fed.Wait()
					must(t, h.close(c.unattended))
					time.Sleep(c.after)
					d.look()
					if !d.closed || strings.HasSuffix(d.said.String(), "V") != (c.unattended == nil) {
						t.Errorf("closed %v, and said %q", d.closed, d.said.String())
					}
				}
				if d.bitten != c.bites {
					t.Errorf("the host was reset: %v", d.bitten)
				}
				close(hang)
				stop()
				fed.Wait()
			})
		})
	}
}

// TestHardwareRefused: a device that can't be relied on is not used, and is left disarmed.
func TestHardwareRefused(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	if _, err := newHardware(&dog{took: time.Minute}, 10*time.Second, log); err == nil || !strings.Contains(err.Error(), "1m0s where 10s") {
		t.Errorf("a device with a timeout of its own: %v", err)
	}
	if _, err := openHardware(filepath.Join(t.TempDir(), "none"), time.Second, log); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a device that isn't there: %v", err)
	}
	file := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(file, nil, 0o600))
	if _, err := openHardware(file, time.Second, log); err == nil || !strings.Contains(err.Error(), "can't be set") {
		t.Errorf("a file that is no device: %v", err)
	}
	if text, err := os.ReadFile(file); err != nil || string(text) != "V" {
		t.Errorf("it was left with %q, %v", text, err)
	}
}
