package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/coloctl/coloctl/internal/guest"
	"github.com/coloctl/coloctl/internal/provision"
)

// Assets are the programs and images that a lab runs. They are made outside, where there is a network, and handed in.
type Assets struct {
	QEMU, QEMUImg []string // argv prefixes
	Version       string   // of QEMU
	Accel         string   // tcg or kvm
	Kernel        string
	Initrd        string
	Daemon        string // colod, or colod-etcd; see [FindDaemon]
	Clock         bool   // Daemon has a wall clock that can be set, see [Node.SetClock]
	Etcd          string // the program, when that is the arbiter
}

const envAssets = "COLOCTL_LAB_ASSETS"

// PrepareAssets finds or fetches QEMU and the guest's kernel and builds the guest's image. It writes its progress to out.
func PrepareAssets(ctx context.Context, out io.Writer) (*Assets, error) {
	tools, err := provision.Ensure(ctx, provision.Options{Out: out})
	if err != nil {
		return nil, err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return nil, fmt.Errorf("folder of the guest's image: %w; set XDG_CACHE_HOME", err)
	}
	cache = filepath.Join(cache, "coloctl", "guest")
	program, err := guest.Init(ctx, cache)
	if err != nil {
		return nil, err
	}
	initrd, err := guest.Image(ctx, guest.ImageOptions{InitBinary: program, ModulesDir: tools.ModulesDir, CacheDir: cache})
	if err != nil {
		return nil, err
	}
	return &Assets{QEMU: tools.QEMU, QEMUImg: tools.QEMUImg, Version: tools.Version, Accel: tools.Accel, Kernel: tools.Kernel, Initrd: initrd}, nil
}

// Env hands the assets to a lab's process, for [StartOptions].
func (a *Assets) Env() (string, error) {
	data, err := json.Marshal(a)
	return envAssets + "=" + string(data), err
}

// InheritedAssets returns what the starter of this lab handed in.
func InheritedAssets() (*Assets, error) {
	text := os.Getenv(envAssets)
	if text == "" {
		return nil, errors.New("the lab was started without a QEMU")
	}
	var a Assets
	if err := json.Unmarshal([]byte(text), &a); err != nil {
		return nil, fmt.Errorf("%s: %w", envAssets, err)
	}
	return &a, nil
}
