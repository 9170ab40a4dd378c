package provision

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
)

// Main is the command "provision": it makes sure of the tools, with progress
// on errOut, and prints on out what they are; with --env as NAME=value lines for
// make and the tests.
func Main(ctx context.Context, args []string, out, errOut io.Writer) error {
	flags := flag.NewFlagSet("provision", flag.ContinueOnError)
	flags.SetOutput(errOut)
	env := flags.Bool("env", false, "print NAME=value lines")
	o := Options{Out: errOut}
	flags.StringVar(&o.CacheDir, "cache", "", "cache `folder` (default: coloctl in the user's cache folder)")
	flags.StringVar(&o.Mirror, "mirror", "", "`URL` of a Debian mirror (default: $"+MirrorVariable+", else that of the machine's apt)")
	flags.BoolVar(&o.Renew, "renew", false, "look for newer packages")
	release := flags.String("release", "", "fetch the QEMU of a `RELEASE` of Debian and print its programs, nothing else")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if *release != "" {
		t, err := Release(ctx, *release, o)
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "%s=%s\n%s=%s\n", QEMUVariable, t.QEMU[0], QEMUImgVariable, t.QEMUImg[0])
		return nil
	}
	t, err := Ensure(ctx, o)
	if err != nil {
		return err
	}
	if *env {
		for _, line := range t.Environ() {
			fmt.Fprintln(out, line)
		}
		return nil
	}
	fmt.Fprintf(out, "QEMU     %s (%s, %s, %s)\nqemu-img %s\nkernel   %s\nmodules  %s\n",
		t.QEMU[0], t.Version, t.Source, t.Accel, t.QEMUImg[0], t.Kernel, t.ModulesDir)
	return nil
}
