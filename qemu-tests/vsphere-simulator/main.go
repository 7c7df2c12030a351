// vsphere-simulator is a vCenter or an ESXi host for tests: govmomi's simulator, made truer where a
// driver would notice, with faults on request and, if asked, real guests behind its virtual machines.
//
//	vsphere-simulator --kind vpx|esx --listen 127.0.0.1:0 --user NAME --password-file FILE \
//	    --datastore DIR [--latency 5ms] [--api-version 7.0.3.0] \
//	    [--guests [--lan] [--qemu PROGRAM] [--qemu-img PROGRAM]] [--trace]
//
// When it serves it prints one line of JSON on standard output:
//
//	{"url":"https://127.0.0.1:PORT/sdk","thumbprint_sha256":"AA:BB:...","control":"http://127.0.0.1:PORT"}
//
// It ends when its standard input ends, and takes its guests with it. Its log is on standard error.
//
// The inventory of `vpx` is one datacenter DC0 with one cluster DC0_C0 of three hosts, the switch DVS0
// with the port groups DC0_DVPG0 and DC0_DVPG1, and `VM Network`; that of `esx` one host with
// `VM Network`. Both have one datastore LocalDS_0, which is DIR and which every host sees. There are no
// virtual machines.
//
// What is truer than in govmomi's simulator:
//
//   - a certificate of its own, versions and a SOAPAction that has to name one, sessions for /folder, and
//     no directories made by writing there;
//   - tasks that are not done before the call that makes them returns;
//   - a property collector that tells at once, of everything, in versions that can be asked for again;
//   - extraConfig by key, changeVersion, one name once in a folder, devices removed by their key, hot add of
//     memory and processors only where it is allowed; faults instead of lost connections for unknown port
//     groups, parents that are not there and devices without a description;
//   - MigrateVM_Task, InstantClone_Task, RebootGuest, uploads to import leases, disks of one file.
//
// What goes wrong on purpose, and what was called, is asked for at the control endpoint: see [control].
//
// With --guests a machine that is powered on is a QEMU: its disks are VMDKs on the datastore (children
// of their parents' files), its CD-ROM, its vNICs on QEMU's user-mode network whatever their port group,
// its serial ports dialled to their URIs with VMware's telnet option 232. guestinfo.* reaches the guest by
// fw_cfg, as the QEMU driver's settings do, once, when it starts; nothing comes back that way. When QEMU
// ends, the machine is off. Suspended, it stands still in memory. Guests are emulated, not virtualised.
// With --lan, which takes the right to make network interfaces, all port groups are one network instead, with
// DHCP, on which this machine is too: see [lan].
//
// What it does not do: memory and processors of a running guest do not change, a snapshot holds disks
// still but no memory and nothing is reverted to it, statistics are made up, a vNIC that was there at the start is not unplugged but disconnected.
// QEMU's UEFI firmware takes what arrives on the first two serial ports for a keyboard, which VMware's does
// not: what is said there before the kernel runs can open its menu.
package main

import (
	"crypto/tls"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	_ "github.com/vmware/govmomi/lookup/simulator"
	_ "github.com/vmware/govmomi/pbm/simulator"
	"github.com/vmware/govmomi/simulator"
	_ "github.com/vmware/govmomi/sts/simulator"
	_ "github.com/vmware/govmomi/vapi/simulator"
)

// options are the command line's.
type options struct {
	kind         string
	listen       string
	user         string
	passwordFile string
	datastore    string
	latency      time.Duration
	apiVersion   string
	guests       bool
	lan          bool
	trace        bool
	qemu         string
	qemuImg      string
}

// ready is the line that says where the simulator is.
type ready struct {
	URL        string `json:"url"`
	Thumbprint string `json:"thumbprint_sha256"`
	Control    string `json:"control"`
}

func parse(arguments []string) (options, error) {
	var o options
	flags := flag.NewFlagSet("vsphere-simulator", flag.ContinueOnError)
	flags.StringVar(&o.kind, "kind", "vpx", "vpx: a vCenter; esx: a host of its own")
	flags.StringVar(&o.listen, "listen", "127.0.0.1:0", "address to serve HTTPS on")
	flags.StringVar(&o.user, "user", "", "the one user's name")
	flags.StringVar(&o.passwordFile, "password-file", "", "file with the user's password on its first line")
	flags.StringVar(&o.datastore, "datastore", "", "directory that is the datastore LocalDS_0")
	flags.DurationVar(&o.latency, "latency", 0, "time each request takes longer")
	flags.StringVar(&o.apiVersion, "api-version", "7.0.3.0", "newest version of the API that is offered")
	flags.BoolVar(&o.guests, "guests", false, "run a QEMU for each virtual machine that is powered on")
	flags.BoolVar(&o.lan, "lan", false, "with guests: one network of all of them, which this machine is on")
	flags.BoolVar(&o.trace, "trace", false, "log every call and the beginning of its answer")
	flags.StringVar(&o.qemu, "qemu", "qemu-system-x86_64", "QEMU's program")
	flags.StringVar(&o.qemuImg, "qemu-img", "qemu-img", "the program that makes disks")
	if err := flags.Parse(arguments); err != nil {
		return o, err
	}
	if flags.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if o.kind != "vpx" && o.kind != "esx" {
		return o, fmt.Errorf("--kind %q: is vpx or esx", o.kind)
	}
	for _, needed := range []struct{ name, value string }{
		{"user", o.user}, {"password-file", o.passwordFile}, {"datastore", o.datastore},
	} {
		if needed.value == "" {
			return o, fmt.Errorf("--%s is needed", needed.name)
		}
	}
	return o, nil
}

func run(o options) error {
	password, err := os.ReadFile(o.passwordFile)
	if err != nil {
		return fmt.Errorf("--password-file: %w", err)
	}
	secret := strings.SplitN(string(password), "\n", 2)[0]
	if secret == "" {
		return fmt.Errorf("--password-file %s: the first line is empty", o.passwordFile)
	}
	certificate, thumbprint, err := selfSigned(o.listen)
	if err != nil {
		return fmt.Errorf("making a certificate: %w", err)
	}
	directory, err := filepath.Abs(o.datastore)
	if err != nil {
		return fmt.Errorf("--datastore: %w", err)
	}
	host.enabled, host.datastore, host.qemu, host.qemuImg = o.guests, directory, o.qemu, o.qemuImg
	if o.guests {
		if host.scratch, err = os.MkdirTemp("", "vsphere-simulator."); err != nil {
			return err
		}
		defer endGuests()
		if o.lan {
			if host.lan, err = newLan(host.scratch); err != nil {
				return fmt.Errorf("--lan: %w", err)
			}
		}
	}
	service, err := createInventory(o)
	if err != nil {
		return fmt.Errorf("making the inventory: %w", err)
	}

	service.Listen = &url.URL{Host: o.listen, User: url.UserPassword(o.user, secret)}
	service.TLS = &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12}
	service.RegisterEndpoints = true
	server := service.NewServer()
	front := newFront(server.Config.Handler, o)
	server.Config.Handler = front
	server.Config.ErrorLog = log.Default()
	control, err := serveControl(front)
	if err != nil {
		return fmt.Errorf("serving the control endpoint: %w", err)
	}

	line, err := json.Marshal(ready{
		URL:        (&url.URL{Scheme: "https", Host: server.URL.Host, Path: "/sdk"}).String(),
		Thumbprint: thumbprint,
		Control:    control,
	})
	if err != nil {
		return err
	}
	if _, err := fmt.Printf("%s\n", line); err != nil {
		return err
	}

	// Who started this holds the other end of standard input, whatever becomes of it.
	ended := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, os.Stdin)
		ended <- err
	}()
	told := make(chan os.Signal, 1)
	signal.Notify(told, os.Interrupt, syscall.SIGTERM)
	select {
	case err = <-ended:
	case <-told:
	}
	server.CloseClientConnections()
	return err
}

func main() {
	log.SetFlags(log.Ltime | log.Lmicroseconds)
	o, err := parse(os.Args[1:])
	if err == flag.ErrHelp {
		return
	}
	if err == nil {
		err = run(o)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "vsphere-simulator:", err)
		os.Exit(1)
	}
}

// registry is the simulator's own, which exists once in a process.
func registry() *simulator.Registry { return simulator.Map }
