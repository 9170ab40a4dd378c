package comparer

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
)

const selfArgument = "compare"

// Main makes a program its own comparer: it doesn't return in a process that was started by the command that [Self] returns. Call it first in main, and in
// TestMain. It is for programs that embed a node of the library; colod has its own way.
func Main() {
	if len(os.Args) != 3 || os.Args[1] != selfArgument {
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	err := Run(ctx, os.Args[2], slog.New(slog.NewTextHandler(os.Stderr, nil)))
	stop()
	if err != nil {
		slog.Error("the comparer has ended", "err", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// Self is the command that starts this program as a comparer: what colo.NodeConfig's Comparer is for a program whose main calls [Main].
func Self() ([]string, error) {
	exe, err := os.Executable()
	return []string{exe, selfArgument}, err
}
