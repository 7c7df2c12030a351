//! The virtual serial port concentrator: where the serial ports of machines on ESXi arrive, over
//! telnet with VMware's option 232.
